"""The model card of a package on the hub: what its manifest and its parity report say, and how to run it.

Every figure is that of ``parity.json``; what was not measured is said in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scale_export.coefficients.file import Coefficients
from scale_export.core.words import INTEGER
from scale_export.package.manifest import Manifest
from scale_export.proof.numbers import human_bytes
from scale_export.proof.report import MEANINGS

MARK: Final = "<!-- written by scale-export push -->"
"""In every card, so that a later push knows it from a page that somebody wrote."""
EXTRAS: Mapping[str, str] = {"onnxruntime": "ort", "coreml": "coreml", "coreai": "coreai"}
"""Backend → the extra that runs its packages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card is made from.

    Attributes:
        repo: the package's id on the hub.
        parity: the object in ``parity.json``.
        base: the base model's id on the hub; None where it has none that is known.
        licence: that of the base model, in the hub's words; None where it is not known.
    """

    repo: str
    manifest: Manifest
    coefficients: Coefficients
    parity: Mapping[str, Any]
    base: str | None
    licence: str | None


def model_card(facts: CardFacts) -> str:
    """The page as Markdown, with the YAML that the hub reads in front; the same facts give the same text."""
    sections = (_what, _accuracy, _legs, _not_checked, _run, _origin)
    body = "\n\n".join("\n".join(section(facts)) for section in sections)
    return f"---\n{_front_matter(facts)}---\n\n{MARK}\n\n{body}\n"


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    manifest = facts.manifest
    written_as = {"onnxruntime": "onnx"}.get(manifest.backend, manifest.backend)
    tags = ["scale", "scale-export", "vision-language", written_as, manifest.precision, manifest.target]
    relation = "quantized" if manifest.precision in INTEGER else "finetune"
    table = ModelCardData(
        base_model=facts.base,
        license=facts.licence,
        library_name="transformers" if manifest.backend == "checkpoint" else "scale-export",
        pipeline_tag="image-text-to-text",
        tags=list(dict.fromkeys(tags)),
        **({"base_model_relation": relation} if facts.base else {}),
    )
    return f"{table.to_yaml().rstrip()}\n"


def _what(facts: CardFacts) -> Iterator[str]:
    manifest, coefficients = facts.manifest, facts.coefficients
    acting = "the last token of each step" if coefficients.scope == "last" else "every token"
    size = human_bytes(sum(entry.size for entry in manifest.files.values()))
    yield f"# {facts.repo.rpartition('/')[2]}"
    yield ""
    yield (
        f"`{manifest.base_model}` with {coefficients.count} ScAle scalars, which act on {acting}, exported by "
        f"scale-export {manifest.tool.version} for `{manifest.target}` ({manifest.backend}) at {manifest.precision}: "
        f"{size} in {len(manifest.files)} files. The scalars enter by fold mode `{manifest.fold}`."
    )


def _accuracy(facts: CardFacts) -> Iterator[str]:
    yield "## Accuracy"
    yield ""
    task, agreed = facts.parity["legs"].get("task"), facts.parity.get("answer_agreement")
    if task is None:
        yield "No question set was asked: how often this package is right was not measured."
    else:
        yield f"On {task['cases']} questions of `{task['dataset']}`, {task['scoring']} scoring:"
        yield ""
        yield "| | all | spatial | other |"
        yield "| --- | --- | --- | --- |"
        names = {"base": "base model", "scale": "PyTorch ScAle", "export": "this package"}
        for who, name in names.items():
            shares = task["accuracy"].get(who) or {}
            yield (
                f"| {name} | "
                + " | ".join(_share(shares.get(kind)) for kind in ("all", "spatial", "other"))
                + " |"
            )
        kept = task.get("gain_retention")
        yield ""
        yield (
            f"Gain of ScAle that the package keeps: {_percent(kept)}. "
            f"Same answers as PyTorch ScAle: {_percent(task.get('agreement'))}."
        )
    if agreed is not None:
        yield ""
        yield (
            f"Same answers as PyTorch ScAle on {agreed['cases']} parity prompts: {_percent(agreed.get('agreement'))}."
        )


def _share(estimate: Mapping[str, float] | None) -> str:
    """``79.2 % (59.5–90.8)``, with its 95 % interval."""
    if estimate is None:
        return "not measured"
    low, high = (estimate.get(end) for end in ("low", "high"))
    between = "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"
    return f"{100 * estimate['value']:.1f} %{between}"


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"


def _legs(facts: CardFacts) -> Iterator[str]:
    yield "## Parity with PyTorch"
    yield ""
    yield f"Measured before it shipped, by {facts.parity['executed_by']}; `report.html` has every figure."
    yield ""
    yield "| leg | compares | worst figure | limit | verdict |"
    yield "| --- | --- | --- | --- | --- |"
    legs = facts.parity["legs"]
    for name in sorted(legs, key=list(MEANINGS).index):
        leg = legs[name]
        meaning = MEANINGS.get(name, "").rstrip(".")
        verdict = {True: "passed", False: "FAILED", None: "no limit"}[leg["passed"]] if leg else "not checked"
        figures = list(_figures(leg or {}))
        value = "; ".join(f"{label} {value:.2g}" for label, value, _ in figures)
        limit = "; ".join("none" if bound is None else f"{bound:g}" for _, _, bound in figures)
        yield f"| {name} | {meaning} | {value} | {limit} | {verdict} |"


def _figures(leg: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """(what, value, limit) of a leg: its one metric, or those that it has limits for."""
    if leg.get("value") is not None and "metric" in leg:
        yield leg["metric"].replace("|", "\\|"), leg["value"], leg.get("limit")
    for name, bound in (leg.get("limits") or {}).items():
        value = leg.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name.replace("_", " "), value, bound


def _not_checked(facts: CardFacts) -> Iterator[str]:
    yield "## What was not checked"
    yield ""
    yield "- Speed, memory and numbers on your device: what was measured ran on the machine that exported."
    for sentence in facts.parity["not_checked"]:
        yield f"- {sentence}"


def _run(facts: CardFacts) -> Iterator[str]:
    yield "## How to run it"
    yield ""
    extra = EXTRAS.get(facts.manifest.backend)
    if extra is None:
        yield f"    hf download {facts.repo} --local-dir {facts.repo.rpartition('/')[2]}"
        yield ""
        yield "It is a Hugging Face checkpoint: transformers, llama.cpp, MLX and vLLM take its directory."
        return
    yield f"    pip install 'scale-export[{extra}]'"
    yield f'    scale-export run {facts.repo} --image photo.jpg --prompt "what is left of the cup?"'
    yield ""
    yield "```python"
    yield "import scale_export"
    yield ""
    yield f'package = scale_export.open_package("{facts.repo}")'
    yield 'print(package.answer(["photo.jpg"], "what is left of the cup?"))'
    yield "```"
    yield ""
    yield f"`scale-export verify {facts.repo} --selftest` checks its hashes and golden cases on your machine."


def _origin(facts: CardFacts) -> Iterator[str]:
    base = facts.base and f"[{facts.base}](/{facts.base})"  # on the hub's own pages
    yield "## Base model and licence"
    yield ""
    yield (
        f"The base model is {base or f'`{facts.manifest.base_model}`'} (`{facts.manifest.model_type}`). "
        + (
            f"Its licence is `{facts.licence}`, which holds for its weights in this package too."
            if facts.licence
            else "Its licence, which holds for its weights in this package too, is not known to what wrote this page."
        )
    )
    trained = facts.coefficients.training
    if data := str(trained.get("data", "")).partition(":")[0]:
        yield f"The scalars were trained on `{data}`."


def is_card(text: str) -> bool:
    """Whether a README on the hub is one of these cards, or holds nothing but its YAML."""
    parts: Sequence[str] = text.split("---\n")
    body = "---\n".join(parts[2:]) if text.startswith("---\n") and len(parts) > 2 else text
    return MARK in text or not body.strip()
