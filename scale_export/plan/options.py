"""What a user may ask of an export beside its coefficients and its target. No framework is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from scale_export.core.defaults import CALIBRATION_QUESTIONS, PARITY, SCORING, WEIGHTING
from scale_export.core.options import Option, StrPath, check
from scale_export.core.words import FloatType, FoldMode, ParityMode, Precision, Scoring, Weighting

Auto = Literal["auto"]
Cache = Annotated[
    StrPath | None, Option(help="Folder for calibration statistics; by default ~/.cache/scale-export.")
]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What decides a package; ``auto`` and None leave it to the target, the coefficients and what is exact."""

    precision: Annotated[
        Precision | None,
        Option(
            help="What weights are written in: float32, float16, int8, int4 or w8a8; stored for a checkpoint. "
            "By default the target's own."
        ),
    ] = None
    activations: Annotated[
        FloatType | None,
        Option(
            help="What the decoder computes in and its cache holds beside int8 and int4 weights: float32 or float16. "
            "By default the target's own."
        ),
    ] = None
    fold: Annotated[
        FoldMode | Auto,
        Option(help="How scalars enter: auto (the cheapest exact way), weights, gate or two-phase."),
    ] = "auto"
    block_size: Annotated[
        int | None, Option(help="Weights that share a quantization scale; by default the target's number.")
    ] = None
    quantizer: Annotated[
        str,
        Option(
            help="How weights are rounded. int8 and int4: rtn, mse, hqq, gptq or awq. w8a8: rtn or smoothquant. "
            "auto: the precision's default."
        ),
    ] = "auto"
    calib: Annotated[
        str,
        Option(
            help="What to calibrate on: auto (the set trained on, else self), none, NAME or NAME:DIR of a question "
            "set, text:PATH (plain text) or self (what the model writes itself)."
        ),
    ] = "auto"
    calib_limit: Annotated[
        int, Option(help="Calibrate on this many questions, windows or chats at most.", least=1)
    ] = CALIBRATION_QUESTIONS
    calib_weighting: Annotated[
        Weighting,
        Option(
            help="Which tokens count in calibration: uniform (all the same), last (those that predict the answer "
            "weigh half) or image (image tokens weigh half)."
        ),
    ] = WEIGHTING
    calib_text_only: Annotated[bool, Option(help="Calibrate without pictures.")] = False
    bits: Annotated[
        Mapping[str, int] | StrPath | None,
        Option(
            flags=("--bits-plan",),
            help="Bits of single matrices, 4 or 8: a TOML file with a table [bits], spared (int4's default), "
            "k_quant_mixed or uniform (4 everywhere).",
        ),
    ] = None
    cache: Cache = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """How an export is compared with PyTorch."""

    evaluation: Annotated[
        str,
        Option(
            flags=("--eval",),
            help="Question set of the task leg: auto (the one trained on), none, NAME, NAME:DIR or jsonl:FILE.",
        ),
    ] = "auto"
    eval_limit: Annotated[int | None, Option(help="Ask this many of its questions at most.", least=1)] = None
    scoring: Annotated[
        Scoring,
        Option(
            help="What a right answer is. strict: it names the right option and no other. "
            "official: by the rules of the set's authors."
        ),
    ] = SCORING
    parity: Annotated[
        ParityMode,
        Option(
            help="The float32 reference: full (held in memory), streamed (read from disk, two prompts), auto (full "
            "where memory allows), or files (for a checkpoint: compare files, run no model)."
        ),
    ] = PARITY

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where the things lie that a package was made from; None takes what its manifest names."""

    model: Annotated[
        str | None, Option(help="Directory or hub id of the base model; by default what the package names.")
    ] = None
    target: Annotated[
        str | None, Option(help="TOML file of the target, where it is none of those that `targets` lists.")
    ] = None
    calib: Annotated[
        str | None,
        Option(
            help="NAME:DIR, jsonl:FILE or text:PATH that the package was calibrated on, where it lies on a disk."
        ),
    ] = None
    cache: Cache = None
