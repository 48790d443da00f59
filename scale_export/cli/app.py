"""The command line: thin commands over the pipeline. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED, EXIT_USER_ERROR, UserError
from scale_export.core.version import __version__
from scale_export.plan.options import ExportOptions

app = typer.Typer(
    name="scale-export",
    help="Export ScAle-adapted vision-language models to devices, and prove that the export answers as PyTorch did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
PackageArg = Annotated[Path, typer.Argument(metavar="PKG", help="A package directory that fold wrote.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the runtime; its own choice by default.")
]


class Scope(StrEnum):
    """Which positions trained scalars act on."""

    last = "last"
    all = "all"


class Scoring(StrEnum):
    """Whose rules judge answers."""

    strict = "strict"
    official = "official"


EvalLimit = Annotated[int | None, typer.Option(min=1, help="At most so many questions of it.")]
ScoringOption = Annotated[
    Scoring,
    typer.Option(help="strict: the right option and no other; official: the rules of the set's authors."),
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Where calibration statistics are kept; ~/.cache/scale-export otherwise.")
]
CalibPlace = Annotated[
    str | None,
    typer.Option(help="Where the set lies that the package was calibrated on, NAME:DIR, if it is on a disk."),
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"scale-export {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Export ScAle-adapted vision-language models to devices, and prove that the export answers as PyTorch did."""


@app.command()
def fold(
    coeffs: Annotated[
        Path, typer.Option("--coeffs", "-c", help="The coefficient file: spatial.pt or .safetensors.")
    ],
    target: Annotated[
        str, typer.Option("--target", "-t", help="A target's name (see `targets`) or its TOML file.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Base model directory or hub id; by default the one the coefficient file names."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Package directory; by default COEFFS-TARGET here.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, float16, int8, int4 or w8a8; the target's default otherwise.")
    ] = None,
    fold_mode: Annotated[
        str, typer.Option("--fold", help="auto (the cheapest exact mode), weights, gate or two-phase.")
    ] = "auto",
    block_size: Annotated[
        int | None, typer.Option(help="Weights per quantization scale; the target's otherwise.")
    ] = None,
    quantizer: Annotated[
        str,
        typer.Option(
            help="rtn, mse, hqq, gptq or awq for int8 and int4; rtn or smoothquant for w8a8; auto otherwise."
        ),
    ] = "auto",
    calib: Annotated[
        str, typer.Option(help="Question set of calibration: auto (the one trained on), none, or NAME.")
    ] = "auto",
    calib_limit: Annotated[int, typer.Option(min=1, help="At most so many of its questions.")] = 128,
    calib_weighting: Annotated[
        str,
        typer.Option(
            help="uniform, last (positions that predict the answer) or image (image tokens): what counts."
        ),
    ] = "uniform",
    calib_text_only: Annotated[
        bool, typer.Option("--calib-text-only", help="Calibrate on the questions without their pictures.")
    ] = False,
    bits_plan: Annotated[
        str | None,
        typer.Option(
            help="TOML file with the bits of single matrices, 4 or 8, under [bits]; or k_quant_mixed."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Choose 4 or 8 bits per matrix: size=1.2MB, decode=30tok/s, loss<=1pp or kl<=0.01."
        ),
    ] = None,
    cache: CacheOption = None,
    evaluation: Annotated[
        str,
        typer.Option(
            "--eval", help="Question set of the task leg: auto (the one trained on), none, NAME or NAME:DIR."
        ),
    ] = "auto",
    eval_limit: EvalLimit = None,
    scoring: ScoringOption = Scoring.strict,
    parity: Annotated[
        str,
        typer.Option(
            help="The float32 reference: full (loaded), streamed (from disk, few prompts), auto; files runs no model."
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and why; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing package, in one step.")] = False,
    as_json: Json = False,
) -> None:
    """Fold scalars into a base model, quantize, export, verify against PyTorch, and write a package.

    Example: scale-export fold --coeffs spatial.pt --target coreml --precision int4
    """
    from .fold import run_fold

    _need_export()
    raise typer.Exit(
        run_fold(
            coeffs=coeffs,
            target=target,
            model=model,
            out=out,
            options=ExportOptions(
                precision=precision,
                fold=fold_mode,
                block_size=block_size,
                quantizer=quantizer,
                calib=calib,
                calib_limit=calib_limit,
                calib_weighting=calib_weighting,
                calib_pictures=not calib_text_only,
                cache=cache,
            ),
            bits_plan=bits_plan,
            budget=budget,
            evaluation=evaluation,
            eval_limit=eval_limit,
            scoring=scoring.value,
            parity=parity,
            dry_run=dry_run,
            force=force,
            as_json=as_json,
        )
    )


@app.command()
def verify(
    package: PackageArg,
    model: Annotated[
        str | None, typer.Option(help="Base model directory or hub id, for the parity legs.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The target's TOML file, where it is not one of `targets`.")
    ] = None,
    evaluation: Annotated[
        str, typer.Option("--eval", help="Question set of the task leg: auto, none, NAME or NAME:DIR.")
    ] = "auto",
    eval_limit: EvalLimit = None,
    scoring: ScoringOption = Scoring.strict,
    require: Annotated[
        list[str] | None,
        typer.Option(help="What must hold beside the limits, such as int4.retention>=0.9; repeatable."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Check the package's signature with this key first.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="The signature file; by default PKG.sig, beside the package.")
    ] = None,
    parity: Annotated[
        str,
        typer.Option(
            help="The float32 reference: full (loaded), streamed (from disk, few prompts), auto; files runs no model."
        ),
    ] = "auto",
    calib: CalibPlace = None,
    cache: CacheOption = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Only hashes and golden cases: no base model, no torch.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a package: hashes, golden cases, and every parity leg against the base model again.

    Example: scale-export verify spatial-cpu --model path/to/base
    """
    from .verify import run_verify

    if not selftest:
        _need_export()
    raise typer.Exit(
        run_verify(
            package=package,
            model=model,
            target=target,
            evaluation=evaluation,
            eval_limit=eval_limit,
            scoring=scoring.value,
            require=require or [],
            signature=signature,
            public_key=public_key,
            parity=parity,
            calib=calib,
            cache=cache,
            selftest_only=selftest,
            as_json=as_json,
        )
    )


@app.command()
def doctor(
    package: Annotated[
        Path, typer.Argument(metavar="PKG", help="A package, or the .failed directory of one.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Base model directory or hub id, to compare with.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The target's TOML file, where it is not one of `targets`.")
    ] = None,
    calib: CalibPlace = None,
    cache: CacheOption = None,
    as_json: Json = False,
) -> None:
    """Find the first stage, layer and matrix at which an export departs from the PyTorch ScAle model.

    Example: scale-export doctor spatial-cpu.failed
    """
    from .doctor import run_doctor

    _need_export()
    raise typer.Exit(
        run_doctor(package=package, model=model, target=target, calib=calib, cache=cache, as_json=as_json)
    )


@app.command()
def sign(
    package: PackageArg,
    key: Annotated[Path, typer.Option(help="An elliptic-curve private key, a PEM file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Signature file; by default PKG.sig, beside the package."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing signature.")] = False,
    as_json: Json = False,
) -> None:
    """Sign a package in the format of OpenSSF Model Signing, with a key of your own, offline.

    Example: scale-export sign spatial-cpu --key signer.pem
    """
    from .verify import run_sign

    raise typer.Exit(run_sign(package=package, key=key, out=out, force=force, as_json=as_json))


@app.command()
def run(
    package: PackageArg,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture; may be given several times.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The question.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask on, question after question; an empty line ends.")
    ] = False,
    scale: Annotated[
        float, typer.Option(help="Strength of the scalars: 0 is the base model, 1 is ScAle.")
    ] = 1.0,
    coeffs: Annotated[
        Path | None, typer.Option(help="Other coefficients of the same base model, swapped in.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Ask a package a question about a picture; the answer streams.

    Example: scale-export run spatial-cpu --image scene.png --prompt "what is left of the red circle ?"
    """
    from .run import run_prompt

    raise typer.Exit(
        run_prompt(
            package=package,
            images=image or [],
            prompt=prompt,
            chat=chat,
            scale=scale,
            coeffs=coeffs,
            max_new_tokens=max_new_tokens,
            threads=threads,
            as_json=as_json,
        )
    )


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="FILE_OR_PKG", help="A coefficient file or a package directory.")
    ],
    png: Annotated[
        Path | None, typer.Option("--png", help="Draw the scalars' heat map into this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a coefficient file or a package is, and draw its scalars.

    Example: scale-export inspect spatial.pt --png spatial.png
    """
    from .inspection import run_inspect

    raise typer.Exit(run_inspect(path=path, png=png, as_json=as_json))


@app.command()
def train(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The base model's directory.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Coefficient file to write; its .safetensors twin lies beside."),
    ],
    data: Annotated[str, typer.Option(help="Question set to train on, NAME or NAME:ARGUMENT.")] = "gridworld",
    scope: Annotated[
        Scope, typer.Option(help="last: last token of each step; all: every token.")
    ] = Scope.last,
    bound: Annotated[float, typer.Option(help="r in s = 1 + r·tanh(a).")] = 1.0,
    layers: Annotated[
        str | None, typer.Option(help="Layers to train, such as 0,2,3; all by default.")
    ] = None,
    sites: Annotated[str, typer.Option(help="heads, mlp or both.")] = "both",
    select: Annotated[
        int | None, typer.Option(help="Train only the K layers most sensitive on validation.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps at the most.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Questions per step.")] = 64,
    learning_rate: Annotated[float, typer.Option("--lr", help="Adam's learning rate.")] = 0.08,
    replay: Annotated[float, typer.Option(help="Share of non-spatial questions, against forgetting.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Seed of batches.")] = 0,
    patience: Annotated[
        int, typer.Option(help="Looks at validation without gain before stopping; 0 never stops.")
    ] = 5,
    limit: Annotated[int | None, typer.Option(help="At most so many questions of each split.")] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also train LoRA and IA3 on the same data.")
    ] = False,
    test: Annotated[bool, typer.Option("--test", help="Final table on the held-out test split.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Train ScAle scalars on a frozen model and write a coefficient file.

    Example: scale-export train path/to/base --out spatial.pt --data gridworld
    """
    from .train import run_train

    _need_export()
    raise typer.Exit(
        run_train(
            model=model,
            out=out,
            data=data,
            scope=scope.value,
            bound=bound,
            layers=layers,
            sites=sites,
            select=select,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            replay=replay,
            seed=seed,
            patience=patience or None,
            limit=limit,
            baselines=baselines,
            test=test,
            force=force,
            as_json=as_json,
        )
    )


@app.command()
def bench(
    package: PackageArg,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded after it.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = 5,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode speed, time to first token, memory, and the share of the bandwidth floor.

    Example: scale-export bench spatial-cpu
    """
    from .bench import run_bench

    raise typer.Exit(
        run_bench(
            package=package,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            as_json=as_json,
        )
    )


@app.command()
def targets(as_json: Json = False) -> None:
    """List the devices that packages can be made for.

    Example: scale-export targets
    """
    from .lists import run_targets

    raise typer.Exit(run_targets(as_json=as_json))


@app.command()
def families(as_json: Json = False) -> None:
    """List the model families that are supported, and the errors that their proofs measured.

    Example: scale-export families
    """
    from .lists import run_families

    raise typer.Exit(run_families(as_json=as_json))


def _need_export() -> None:
    """Refuse before anything is read where the exporting libraries are missing."""
    from importlib.util import find_spec

    for library in ("torch", "onnx", "onnxruntime", "onnxscript"):
        if find_spec(library) is None:
            raise UserError(
                f"this command needs {library}, which is not installed: pip install 'scale-export[export]'"
            )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code: Any = app(arguments, standalone_mode=False)
    except UserError as error:
        _complain(str(error), "--json" in arguments)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written", "--json" in arguments)
        code = 130
    except typer.Exit as end:
        code = end.exit_code
    except Exception as error:
        code = _usage_error(error)
    sys.exit(code or EXIT_OK)


def _usage_error(error: Exception) -> int:
    """Show a mistake in the words of a command as Typer does; anything else is ours, and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    return EXIT_USER_ERROR


def _complain(sentence: str, as_json: bool) -> None:
    typer.echo(f"scale-export: {sentence}", err=True)
    if as_json:
        typer.echo(json.dumps({"error": sentence}))


__all__ = ["EXIT_PARITY_FAILED", "app", "main"]
