"""What each command does once its words are parsed: call the project, show the result, return the exit code."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .display import console, figure, say, show_parity, verdict
from .errors import EXIT_OK, EXIT_PARITY_FAILED, UserError
from .progress import WorkLog

if TYPE_CHECKING:
    from .scoring import Scoring

COEFFICIENT_SUFFIXES = (".pt", ".safetensors")


def run_fold(
    *,
    coeffs: Path,
    target: str,
    model: str | None,
    out: Path | None,
    precision: str | None,
    fold: str,
    block_size: int | None,
    quantizer: str,
    calib: str,
    calib_limit: int,
    calib_weighting: str,
    calib_pictures: bool,
    bits_plan: str | None,
    budget: str | None,
    cache: Path | None,
    evaluation: str,
    eval_limit: int | None,
    scoring: Scoring,
    parity: str,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> int:
    """``scale-export fold``."""
    from .api import default_out
    from .bits_plan import bits_plan as named_bits
    from .options import ExportOptions
    from .pipeline import FoldRequest, fold_package, plan_fold

    quiet_libraries()
    request = FoldRequest(
        coeffs=coeffs,
        target=target,
        out=out or default_out(coeffs, target),
        model=model,
        options=ExportOptions(
            precision=precision,
            fold=fold,
            block_size=block_size,
            quantizer=quantizer,
            calib=calib,
            calib_limit=calib_limit,
            calib_weighting=calib_weighting,
            calib_pictures=calib_pictures,
            bits=named_bits(bits_plan) if bits_plan else {},
            cache=cache,
        ),
        evaluation=evaluation,
        eval_limit=eval_limit,
        scoring=scoring,
        parity=parity,
        budget=budget,
        force=force,
    )
    if dry_run:
        plan = plan_fold(request)
        return show({"dry_run": True, "decisions": list(plan.decisions)}, plan.decisions, as_json)
    log = WorkLog()
    outcome = fold_package(request, log)
    write_log(request.out, log)
    if not as_json:
        for decision in outcome.plan.decisions:
            say(decision)
        show_parity(outcome.parity)
        say(f"{'Package' if outcome.passed else 'Kept for inspection, not shipped'}: {outcome.path}")
        say(f"Report: {outcome.path / 'report.html'}")
    else:
        print(json.dumps({"path": str(outcome.path), "passed": outcome.passed, "parity": outcome.parity}))
    return EXIT_OK if outcome.passed else EXIT_PARITY_FAILED


def run_verify(
    *,
    package: Path,
    model: str | None,
    target: str | None,
    evaluation: str,
    eval_limit: int | None,
    scoring: Scoring,
    require: Sequence[str],
    signature: Path | None,
    public_key: Path | None,
    parity: str,
    calib: str | None,
    cache: Path | None,
    selftest_only: bool,
    as_json: bool,
) -> int:
    """``scale-export verify``."""
    from .verification import verify_package

    quiet_libraries()
    found = verify_package(
        package,
        model=model,
        target=target,
        evaluation=evaluation,
        eval_limit=eval_limit,
        scoring=scoring,
        require=require,
        signature=signature,
        public_key=public_key,
        selftest_only=selftest_only,
        parity=parity,
        calib=calib,
        cache=cache,
        log=WorkLog(),
    )
    selftest, passed, signed = found.selftest, found.passed, found.signature
    if as_json:
        record: dict[str, Any] = {"passed": passed, "selftest": selftest, "parity": found.parity}
        record["requirements"] = [asdict(checked) for checked in found.requirements]
        record["signature"] = signed and {
            "path": str(signed.path),
            "public_key_sha256": signed.public_key_sha256,
        }
        print(json.dumps(record))
        return EXIT_OK if passed else EXIT_PARITY_FAILED
    if signed:
        say(f"Signature: {verdict(True)}, by the key with SHA-256 {signed.public_key_sha256}")
    if selftest is None:
        say("Hashes: right. Self-test: not checked (a checkpoint holds no graphs that this tool runs)")
    else:
        say(
            f"Self-test: {verdict(selftest['passed'])}, error {figure(selftest['value'])} of {selftest['limit']:g}"
        )
    if found.parity is None:
        say("Parity legs: not checked (they need the base model; leave out --selftest)")
    else:
        show_parity(found.parity)
    for checked in found.requirements:
        say(f"Required {checked.requirement}: {verdict(checked.passed)}, measured {figure(checked.value)}")
    return EXIT_OK if passed else EXIT_PARITY_FAILED


def run_doctor(
    *,
    package: Path,
    model: str | None,
    target: str | None,
    calib: str | None,
    cache: Path | None,
    as_json: bool,
) -> int:
    """``scale-export doctor``."""
    from .doctor import examine

    quiet_libraries()
    found = examine(package, model=model, target=target, calib=calib, cache=cache, log=WorkLog())
    if as_json:
        print(json.dumps({"fault": found.fault and asdict(found.fault), **asdict(found)}))
        return EXIT_PARITY_FAILED if found.fault else EXIT_OK
    table = Table("stage", "verdict", "error", "limit", "found", box=None)
    for stage in found.stages:
        limit = "" if stage.limit is None else f"{stage.limit:g}"
        table.add_row(stage.name, verdict(stage.passed), figure(stage.value), limit, stage.words)
    console.print(table)
    for stage in found.stages:
        for matrix, error in (stage.table or {}).items():
            say(f"  {stage.name}: {matrix} {error:.2g}")
    for words in found.known_faults:
        say(f"Known fault that fits: {words}")
    if found.fault is None:
        say("No fault was found on this machine.")
        return EXIT_OK
    say(f"First fault: {found.fault.name}, at {found.fault.place or 'no single place'}: {found.fault.words}.")
    return EXIT_PARITY_FAILED


def run_sign(*, package: Path, key: Path, out: Path | None, force: bool, as_json: bool) -> int:
    """``scale-export sign``."""
    from .signing import sign_package

    signature = sign_package(package, key, out, force=force)
    return show({"signature": str(signature)}, [f"Signature: {signature}"], as_json)


def run_prompt(
    *,
    package: Path,
    images: Sequence[Path],
    prompt: str | None,
    chat: bool,
    scale: float,
    coeffs: Path | None,
    max_new_tokens: int,
    threads: int | None,
    as_json: bool,
) -> int:
    """``scale-export run``."""
    from .coefficients import load_coefficients
    from .prompts import Message, assistant_message, open_image, user_message
    from .runtime import open_package

    quiet_libraries()
    if prompt is None and not chat:
        raise UserError("there is nothing to ask: give --prompt, or --chat for a session")
    pictures = [open_image(path) for path in images]
    opened = open_package(package, threads=threads)
    if coeffs is not None:
        opened.coefficients = load_coefficients(coeffs)
    if scale != 1:
        opened.scale = scale
    messages: list[Message] = []
    while True:
        if prompt is None:
            prompt = _ask_user()
            if prompt is None:
                return EXIT_OK
        messages.append(user_message(pictures if not messages else [], prompt))
        answer = _stream(opened, messages, max_new_tokens, show_pieces=not as_json)
        if as_json:
            print(json.dumps({"prompt": prompt, "answer": answer}))
        if not chat:
            return EXIT_OK
        messages.append(assistant_message(answer))
        prompt = None


def _stream(package: Any, messages: Sequence[Any], max_new_tokens: int, *, show_pieces: bool) -> str:
    pieces = []
    for piece in package.stream(package.prepare_chat(messages), max_new_tokens=max_new_tokens):
        pieces.append(piece)
        if show_pieces:
            print(piece, end="", flush=True)
    if show_pieces:
        print()
    return "".join(pieces).strip()


def _ask_user() -> str | None:
    """The next question of a chat, or None where the user ends it."""
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


def run_inspect(*, path: Path, png: Path | None, as_json: bool) -> int:
    """``scale-export inspect``."""
    from .coefficients import load_coefficients
    from .package import open_package_files

    if path.is_dir():
        files = open_package_files(path)
        facts = _package_facts(files.manifest)
        coefficients = load_coefficients(files.path(files.manifest.coefficients))
    elif path.suffix in COEFFICIENT_SUFFIXES or path.exists():
        coefficients = load_coefficients(path)
        facts = {}
    else:
        raise UserError(f"there is no file or package {path}: name a coefficient file or a package directory")
    facts |= _coefficient_facts(coefficients)
    if png is not None:
        _draw(coefficients, png, path.name)
    if as_json:
        print(json.dumps(facts | {"png": None if png is None else str(png)}))
        return EXIT_OK
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(f"[bold]{key.replace('_', ' ')}[/]", str(value))
    console.print(table)
    _print_scalars(coefficients)
    if png is not None:
        say(f"Heat map: {png}")
    return EXIT_OK


def _package_facts(manifest: Any) -> dict[str, Any]:
    return {
        "package": manifest.name,
        "target": manifest.target,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "fold": manifest.fold,
        "context_length": manifest.context_length,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "graphs": dict(manifest.graphs),
    }


def _coefficient_facts(coefficients: Any) -> dict[str, Any]:
    heads = [float(s) for row in coefficients.head_scale for s in row]
    return {
        "scope": coefficients.scope,
        "model_type": coefficients.base.model_type,
        "base_model": coefficients.base.base_model,
        "layers": list(coefficients.layer_indices),
        "heads_per_layer": coefficients.num_heads,
        "scalars": coefficients.count,
        "head_scale_range": [min(heads), max(heads)],
        "mlp_scale_range": [float(coefficients.mlp_scale.min()), float(coefficients.mlp_scale.max())],
        "mlp_site": coefficients.mlp_site,
        "training": dict(coefficients.training),
    }


def _print_scalars(coefficients: Any) -> None:
    """The scalars as a small table: one row a layer, deeper blue below 1, deeper red above."""
    table = Table(title="scalars, layer by head", box=None)
    for heading in ("layer", *map(str, range(coefficients.num_heads)), "mlp"):
        table.add_column(heading, justify="right")
    for row, layer in enumerate(coefficients.layer_indices):
        values = [*coefficients.head_scale[row], coefficients.mlp_scale[row]]
        table.add_row(str(layer), *(_coloured(float(v)) for v in values))
    console.print(table)


def _coloured(value: float) -> str:
    strength = int(min(abs(value - 1), 1) * 155) + 100
    colour = f"rgb({strength},90,90)" if value > 1 else f"rgb(90,110,{strength})"
    return f"[{colour}]{value:.2f}[/]"


def _draw(coefficients: Any, png: Path, title: str) -> None:
    try:
        from .draw import heat_map, save_png

        layers = max(coefficients.layer_indices) + 1
        attn, mlp = coefficients.dense(layers, coefficients.num_heads)
        save_png(heat_map(attn, mlp, title=title, scope=coefficients.scope), png)
    except ModuleNotFoundError as error:
        raise UserError(
            f"drawing needs {error.name}, which is not installed: pip install 'scale-export[export]'"
        ) from error


def run_train(
    *, model: Path, out: Path, test: bool, force: bool, layers: str | None, as_json: bool, **options: Any
) -> int:
    """``scale-export train``."""
    from .train import TrainOptions, run_training, training_table

    quiet_libraries()
    chosen = TrainOptions(
        layers=_layer_list(layers), report_split="test" if test else "validation", **options
    )
    report = run_training(model, out, chosen, log=WorkLog(), force=force)
    if as_json:
        print(json.dumps(report.to_json()))
        return EXIT_OK
    console.print(training_table(report))
    for role, path in report.files.items():
        say(f"{role.replace('_', ' ')}: {path}")
    return EXIT_OK


def _layer_list(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f"--layers {text!r} is refused: give layer numbers such as 0,2,3") from error


def run_bench(
    *, package: Path, prompt_tokens: int, new_tokens: int, repeats: int, threads: int | None, as_json: bool
) -> int:
    """``scale-export bench``."""
    from .bench import bench_package
    from .runtime import open_package

    quiet_libraries()
    log = WorkLog()
    opened = open_package(package, threads=threads)
    with log.stage("bench"):
        result = bench_package(
            opened,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            advance=lambda done, total: log.advance("repetitions", done, total),
        )
    if as_json:
        print(json.dumps(result.to_json()))
        return EXIT_OK
    share = (
        "not the floor: the decoder fits the caches"
        if result.bandwidth_share is None
        else f"{result.bandwidth_share:.0%}"
    )
    table = Table(
        title=f"{package.name}, {result.threads} threads, median of {result.repeats}", show_header=False
    )
    table.add_row("measured on", result.executed_by)
    table.add_row("prefill", f"{result.prefill_tokens_per_second:,.0f} tokens/s of {result.prompt_tokens}")
    table.add_row("decode", f"{result.decode_ms:.2f} ms/token ({1e3 / result.decode_ms:,.0f} tokens/s)")
    table.add_row("time to first token", f"{result.first_token_ms:.1f} ms, picture included")
    table.add_row("peak memory", f"{result.peak_memory_bytes / 1e6:,.0f} MB")
    table.add_row("decoder weights", f"{result.decoder_bytes / 1e6:,.1f} MB")
    table.add_row("memory bandwidth", f"{result.bandwidth_bytes_per_second / 1e9:.1f} GB/s")
    table.add_row("share of the bandwidth floor", share)
    console.print(table)
    return EXIT_OK


def run_targets(*, as_json: bool) -> int:
    """``scale-export targets``."""
    from .targets import load_target, target_names

    found = [load_target(name) for name in target_names()]
    if as_json:
        print(json.dumps([target.model_dump(mode="json") for target in found]))
        return EXIT_OK
    table = Table()
    for heading in ("target", "what", "backend", "precisions", "fold modes", "context"):
        table.add_column(heading)
    for target in found:
        precisions = ", ".join(f"{p}*" if p == target.default_precision else p for p in target.precisions)
        modes = ", ".join(target.fold_modes)
        table.add_row(
            target.name,
            target.title,
            target.backend,
            precisions,
            modes,
            str(target.context_length or "the model's"),
        )
    console.print(table)
    say("* the default precision")
    return EXIT_OK


def run_families(*, as_json: bool) -> int:
    """``scale-export families``."""
    from .families import GENERIC_ROUTE, proved

    found = proved()
    if as_json:
        print(json.dumps(found | {"generic": GENERIC_ROUTE}))
        return EXIT_OK
    title = "worst relative error of twenty prompts on a random model"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("model_type", *found["columns"]):
        table.add_column(heading.replace(" ", "\n"), no_wrap=True)
    for family, errors in found["worst"].items():
        table.add_row(family, *(f"{errors[column]:.1e}" for column in found["columns"]))
    console.print(table)
    say(GENERIC_ROUTE)
    return EXIT_OK


def show(as_object: Mapping[str, Any], lines: Sequence[str], as_json: bool) -> int:
    """Print either form of a result."""
    if as_json:
        print(json.dumps(as_object))
    else:
        for line in lines:
            say(line)
    return EXIT_OK


def write_log(package: Path, log: WorkLog) -> None:
    """Write ``<package>.log``: when the run ended and how long each stage took, as JSON."""
    record = {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": log.seconds,
        "peak_bytes": log.peak_bytes,
        "total": sum(log.seconds.values()),
    }
    package.with_name(f"{package.name}.log").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def quiet_libraries() -> None:
    """Keep libraries' progress bars and advice off a user's screen."""
    import os

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
