"""Target files (``targets/cpu.toml``): what a device's runtime can take, and how far its output may stray.

``targets/<name>.toml`` becomes one frozen :class:`Target`; the file's name is its registration. Rules:

1. A file states every setting; only the optional budgets and limits, and ``counts_positions``, may be left out,
   which means "none".
2. Unknown keys, unknown words and values of another type are refused.
3. Settings that contradict one another are refused, with the reason.
4. A user's own file is read by the same rules as a shipped one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.inside import check_regular
from scale_export.core.resources import resource_dir
from scale_export.core.words import (
    BLOCK_SIZES,
    BLOCKWISE,
    INTEGER,
    ComputeUnits,
    FloatType,
    FoldMode,
    Precision,
)

Backend = Literal["onnxruntime", "coreml", "coreai", "checkpoint"]
ExecutionProvider = Literal[
    "ACLExecutionProvider",
    "AzureExecutionProvider",
    "CANNExecutionProvider",
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "DnnlExecutionProvider",
    "JsExecutionProvider",
    "MIGraphXExecutionProvider",
    "NnapiExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
    "OpenVINOExecutionProvider",
    "QNNExecutionProvider",
    "RknpuExecutionProvider",
    "TensorrtExecutionProvider",
    "VSINPUExecutionProvider",
    "VitisAIExecutionProvider",
    "WebGpuExecutionProvider",
    "WebNNExecutionProvider",
    "XnnpackExecutionProvider",
]

_MAX_FILE_BYTES: Final = 65_536
_MIN_BLOCK: Final = 16

BACKEND_KEYS: Final[dict[Backend, tuple[str, ...]]] = {
    "onnxruntime": ("execution_providers", "accuracy_level"),
    "coreml": ("compute_units", "prefill_tokens"),
    "coreai": (),
    "checkpoint": (),
}
"""The keys that only this backend has, and that its targets must state."""

GRAPH_KEYS: Final = ("block_size", "activations", "kv_cache", "vision_precision", "context_length")
"""The keys that every backend's targets must state but those of a checkpoint, which has no graphs."""

BACKEND_ACTIVATIONS: Final[dict[Backend, tuple[FloatType, ...]]] = {
    "onnxruntime": ("float32", "float16"),
    "coreml": ("float16",),
    "coreai": ("float32", "float16"),
    "checkpoint": (),
}
"""What a backend's decoders can compute in, and keep in the cache, beside int8 and int4 weights."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Divergence = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


INTEGER_LIMITS: Final = ("max_kl", "min_top1_agreement", "runtime_max_kl", "runtime_min_top1_agreement")
"""The limits of the quantization and runtime legs, which only quantized weights have."""


class ParityLimits(_Record):
    """Limits of the parity legs that depend on a target, for one weight precision (``docs/parity.md``).

    Attributes:
        max_kl: quantization leg: mean KL divergence from the float weights at the answers' positions, in nats;
            None for float weights, as in the next three, since nothing is quantized there and kernels have no levels.
        min_top1_agreement: quantization leg: share of the answers' decided positions with the same best token.
        runtime_max_kl: runtime leg: mean KL divergence of this machine's kernels from the strictest, in nats.
        runtime_min_top1_agreement: runtime leg: share of the answers' decided positions with the same best token.
        min_gain_retention: task leg: (export - base) / (PyTorch ScAle - base); None for no limit.
        min_answer_agreement: task leg: share of answers equal to PyTorch ScAle's; of integer weights those that it was
            decided about, of others all but near-ties; None for no limit.
        equivalence_margin: task leg: the export's accuracy must be shown to equal PyTorch ScAle's up to this share,
            on spatial questions and on all, by two one-sided tests at 5 %; None for no limit.
        near_tie_budget: task leg: the largest share of cases that may be set aside as near-ties.
    """

    max_kl: Divergence | None = None
    min_top1_agreement: Fraction | None = None
    runtime_max_kl: Divergence | None = None
    runtime_min_top1_agreement: Fraction | None = None
    min_gain_retention: Annotated[float, Field(gt=0)] | None = None
    min_answer_agreement: Fraction | None = None
    equivalence_margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    near_tie_budget: Fraction

    @property
    def of_integers(self) -> bool:
        """Whether they are those of quantized weights."""
        return any(getattr(self, name) is not None for name in INTEGER_LIMITS)


class ParityTable(_Record):
    """The limits by weight precision; None for a precision that the target does not take."""

    float32: ParityLimits | None = None
    float16: ParityLimits | None = None
    int8: ParityLimits | None = None
    int4: ParityLimits | None = None
    w8a8: ParityLimits | None = None
    stored: ParityLimits | None = None

    def of(self, precision: Precision) -> ParityLimits:
        """The limits of one of the target's ``precisions``; raises UserError for another one."""
        tables: dict[str, ParityLimits | None] = dict(self)
        found = tables.get(precision)
        if found is None:
            known = [name for name, limits in tables.items() if limits is not None]
            raise UserError(f"the target does not take {precision} weights{_choices(precision, known)}")
        return found


class Target(_Record):
    """One device class, as its TOML file states it; ``targets/cpu.toml`` comments every key.

    Attributes:
        execution_providers: of ONNX Runtime, in order of preference.
        compute_units: what Core ML may place a model on.
        precisions: the weight precisions that may be asked for.
        block_size: weights per scale of int8 and int4, along the input dimension; None, as the rest of
            ``GRAPH_KEYS``, for a checkpoint.
        accuracy_level: of ONNX Runtime's block-wise products: 0 computes in float, 4 rounds activations to int8.
        counts_positions: whether ONNX Runtime's attention counts positions itself, where its kernel takes none.
        prefill_tokens: how many tokens Core ML's function ``prefill`` takes at once.
        activations, kv_cache: what the decoder computes in and what it keeps.
        fold_modes: how the scalars may enter the graph (``docs/scale.md``).
        context_length: the most tokens of prompt and answer together.
        max_tile_side: the largest height or width of what the vision tower sees at once, in pixels.
        max_part_bytes: the most bytes of matrices in one part of a decoder, which is split beyond; None for
            decoders in one piece.
        max_package_bytes, max_file_bytes, max_memory_bytes: budgets, None for unlimited.
        max_unwarned_bytes: what a plan warns beyond; None for no warning.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    title: Annotated[str, Field(min_length=1)]
    backend: Backend
    execution_providers: (
        Annotated[tuple[ExecutionProvider, ...], Strict(False), Field(min_length=1)] | None
    ) = None
    compute_units: ComputeUnits | None = None
    precisions: Annotated[tuple[Precision, ...], Strict(False), Field(min_length=1)]
    default_precision: Precision
    block_size: Annotated[int, Field(ge=_MIN_BLOCK)] | None = None
    accuracy_level: Literal[0, 4] | None = None
    counts_positions: bool | None = None
    prefill_tokens: Annotated[int, Field(ge=2)] | None = None
    activations: FloatType | None = None
    kv_cache: FloatType | None = None
    vision_precision: FloatType | None = None
    fold_modes: Annotated[tuple[FoldMode, ...], Strict(False), Field(min_length=1)]
    context_length: Annotated[int, Field(ge=1)] | None = None
    max_tile_side: Annotated[int, Field(ge=1)] | None = None
    max_part_bytes: Annotated[int, Field(gt=0)] | None = None
    max_package_bytes: Annotated[int, Field(gt=0)] | None = None
    max_file_bytes: Annotated[int, Field(gt=0)] | None = None
    max_unwarned_bytes: Annotated[int, Field(gt=0)] | None = None
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    parity: ParityTable

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        checks = (_graph_contradictions, _backend_contradictions, _contradictions, _parity_contradictions)
        for check in checks:
            for reason in check(self):
                raise ValueError(reason)
        return self


def _graph_contradictions(target: Target) -> Iterable[str]:
    """What only targets with graphs have, and what only a checkpoint has."""
    checkpoint = target.backend == "checkpoint"
    for key in GRAPH_KEYS:
        if checkpoint and getattr(target, key) is not None:
            yield f"{key} is a setting of graphs, and backend 'checkpoint' has none: drop it"
        if not checkpoint and getattr(target, key) is None:
            yield f"the key {key!r} is missing, which backend {target.backend!r} needs: add it"
    if checkpoint and (target.precisions, target.fold_modes) != (("stored",), ("weights",)):
        yield 'a checkpoint folds into weights as stored: set precisions = ["stored"], fold_modes = ["weights"]'
    if not checkpoint and "stored" in target.precisions:
        yield f"precision 'stored' is a checkpoint's, and backend {target.backend!r} emits graphs: drop it"
    if target.backend != "onnxruntime" and "w8a8" in target.precisions:
        yield f"precision 'w8a8' is emitted for ONNX Runtime, and not by backend {target.backend!r}: drop it"


def _backend_contradictions(target: Target) -> Iterable[str]:
    for backend, keys in BACKEND_KEYS.items():
        for key in keys:
            if backend == target.backend and getattr(target, key) is None:
                yield f"the key {key!r} is missing, which backend {backend!r} needs: add it"
            if backend != target.backend and getattr(target, key) is not None:
                yield f"{key} is a setting of backend {backend!r}, not of {target.backend!r}: drop it"
    if target.counts_positions and target.backend != "onnxruntime":
        yield f"counts_positions is a setting of backend 'onnxruntime', not of {target.backend!r}: drop it"
    if target.max_part_bytes is not None and target.backend != "coreml":
        yield f"max_part_bytes splits decoders of backend 'coreml', not of {target.backend!r}: drop it"
    computes = BACKEND_ACTIVATIONS[target.backend]
    for key in ("activations", "kv_cache"):
        if getattr(target, key) not in (None, *computes):
            yield f"backend {target.backend!r} has no {getattr(target, key)} {key}: use {' or '.join(computes)}"
    if target.backend == "onnxruntime" and target.activations != target.kv_cache:
        yield "ONNX Runtime's attention keeps its cache in what it computes in: set activations and kv_cache alike"


def _contradictions(target: Target) -> Iterable[str]:
    lists: dict[str, Sequence[str]] = {
        "execution_providers": target.execution_providers or (),
        "precisions": target.precisions,
        "fold_modes": target.fold_modes,
    }
    for key, words in lists.items():
        for word in sorted({w for w in words if words.count(w) > 1}):
            yield f"{key} lists {word!r} twice: keep one"
    if target.default_precision not in target.precisions:
        yield f"default_precision {target.default_precision!r} is not among precisions: add it or change it"
    if target.block_size is not None and target.block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        yield f"block_size {target.block_size} is none that kernels take: use one of {sizes}"
    providers = target.execution_providers or ()
    if "CPUExecutionProvider" in providers[:-1]:
        yield "CPUExecutionProvider takes every node, so what follows it would never run: put it last"
    if target.accuracy_level and not set(BLOCKWISE) & set(target.precisions):
        level = f"accuracy_level {target.accuracy_level}"
        yield f"{level} acts on int8 and int4 weights only, and precisions has neither: set it to 0"


def _parity_contradictions(target: Target) -> Iterable[str]:
    for precision in get_args(Precision):
        limits: ParityLimits | None = getattr(target.parity, precision)
        section = f"[parity.{precision}]"
        listed = precision in target.precisions
        if listed and limits is None:
            yield f"precisions lists {precision!r}, but no section {section} limits it: add one"
        if limits is None:
            continue
        if not listed:
            yield f"there is a section {section}, but precisions lacks {precision!r}: add or drop it"
        integers = precision in INTEGER
        for key in INTEGER_LIMITS:
            value = getattr(limits, key)
            if not integers and value is not None:
                yield f"{section} has {key}, which nothing checks, since {precision} is not quantized: drop it"
            if integers and value is None:
                yield f"{section} lacks {key}, a limit of its quantization or runtime leg: add it"


def target_names() -> list[str]:
    """The names of the shipped targets, one per file of the ``targets`` folder."""
    return sorted(path.stem for path in resource_dir("targets").glob("*.toml"))


def load_target(name_or_path: str | Path) -> Target:
    """Read a shipped target by its name, or a user's own file by a path that ends in ``.toml``.

    Raises:
        UserError: no such target or file, a file that is no target, or settings that contradict one another.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml") or "/" in name_or_path:
        return _read_target(Path(name_or_path))
    names = target_names()
    if name_or_path not in names:
        near = did_you_mean(name_or_path, names)
        known = f"known targets: {', '.join(names)}; or give the path of a .toml file of your own"
        raise UserError(f"unknown target {name_or_path!r}{near}; {known}")
    return _read_target(resource_dir("targets") / f"{name_or_path}.toml")


def load_recorded_target(name: str) -> Target:
    """Read the shipped target that a package's manifest names. A package must not bring the limits it is held to.

    Raises:
        UserError: it names none of the shipped ones, or a path.
    """
    if name not in target_names():
        raise UserError(
            f"the package's manifest names the target {name!r}, which is none of the installed ones, and limits are "
            "not taken from a package: give the target's file with --target"
        )
    return load_target(name)


def _read_target(path: Path) -> Target:
    table = _read_toml(path)
    try:
        target = Target.model_validate(table)
    except ValidationError as error:
        raise UserError(f"target file {path} is refused: {_first_problem(error)}") from None
    if target.name != path.stem:
        way = f"call the file {target.name}.toml or set name = {path.stem!r}"
        raise UserError(f"target file {path} is refused: its name is {target.name!r}; {way}")
    return target


def _read_toml(path: Path) -> dict[str, object]:
    check_regular(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"target file {path} cannot be read ({error.strerror}): check the path") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise UserError(
            f"target file {path} is larger than {_MAX_FILE_BYTES} bytes, so it is not a target file: check the path"
        )
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"target file {path} is not valid TOML ({error}): correct it") from None


def _first_problem(error: ValidationError) -> str:
    """The first problem as the rest of a sentence, in the words of the file."""
    problems = error.errors(include_url=False)
    # A misspelt key is both missing and unknown: the unknown word is what helps.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    *parents, last = first["loc"] or ("",)
    section = f" in [{'.'.join(map(str, parents))}]" if parents else ""
    given = first["input"]
    match first["type"]:
        case "extra_forbidden":
            text = f"unknown key {last!r}{section}{_choices(str(last), _model_at(parents).model_fields)}"
        case "missing":
            text = f"the key {last!r}{section} is missing: add it"
        case "literal_error":
            words = re.findall(r"[^', ]+", first["ctx"]["expected"].replace(" or ", ", "))
            text = f"{_dotted(first['loc'])} cannot be {given!r}{_choices(str(given), words)}"
        case "value_error":
            text = str(first["ctx"]["error"])
        case _:
            text = f"{_dotted(first['loc'])} = {given!r} is wrong: {first['msg']}"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _choices(word: str, known: Iterable[str]) -> str:
    return f"{did_you_mean(word, known)}; known: {', '.join(known)}"


def _dotted(location: Sequence[int | str]) -> str:
    return ".".join(part for part in location if isinstance(part, str))


def _model_at(parents: Sequence[int | str]) -> type[BaseModel]:
    return (Target, ParityTable, ParityLimits)[len(parents)]
