"""What a training run may be asked for, and how it says how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

from scale_export.core.defaults import QUESTION_SET
from scale_export.core.errors import UserError
from scale_export.core.options import Option, check
from scale_export.core.words import Scope, Split

TrainedSites = Literal["heads", "mlp", "both"]
REPLAY: Final = 0.3
"""Share of non-spatial questions in a batch, where none is given."""


class ProgressCallback(Protocol):
    """Told after every step of a stage; ``note`` is a short figure such as the loss."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """The progress callback that says nothing."""


def layer_numbers(text: str) -> tuple[int, ...]:
    """The layers that ``--layers 0,2,3`` names, in order, each once.

    Raises:
        UserError: something that is no number.
    """
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f"--layers {text!r} is refused: give layer numbers such as 0,2,3") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of ``scale-export train``; the defaults work on the shipped model.

    Attributes:
        layers: the decoder layers to train; ``select`` chooses among them.
        sites: which scalars move; the others stay 1.
        patience: the best scalars seen are kept, whether the run stops early or not.
        report_split: the validation split also chose the stopping step; the test split has been seen by nothing.
        cache_mib: prefixes beyond it are recomputed.
    """

    data: Annotated[str, Option(help="Question set to train on, NAME, NAME:DIR or jsonl:FILE.")] = (
        QUESTION_SET
    )
    scope: Annotated[
        Scope, Option(help="Where scalars act. last: on the last token of each step; all: on every token.")
    ] = "last"
    bound: Annotated[float, Option(help="How far scalars may move: r in s = 1 + r·tanh(a).", most=100)] = 1.0
    layers: Annotated[
        tuple[int, ...] | None,
        Option(help="Layers to train, such as 0,2,3; by default all.", parse=layer_numbers),
    ] = None
    sites: Annotated[TrainedSites, Option(help="Which scalars to train: heads, mlp or both.")] = "both"
    select: Annotated[
        int | None, Option(help="Train only the K layers that validation is most sensitive to.", least=1)
    ] = None
    steps: Annotated[int, Option(help="Optimizer steps at most.", least=1)] = 200
    batch_size: Annotated[int, Option(help="Questions in a step.", least=1, most=4096)] = 64
    learning_rate: Annotated[float, Option(flags=("--lr",), help="Adam's learning rate.", most=100)] = 0.08
    replay: Annotated[
        float | None,
        Option(
            help="Share of non-spatial questions in a batch, against forgetting; by default 0.3 where there are such "
            "questions."
        ),
    ] = None
    replay_data: Annotated[
        str | None,
        Option(
            help="Question set that those come from, NAME or NAME:DIR; by default that of --data, if it has some."
        ),
    ] = None
    seed: Annotated[int, Option(help="Seed of the batches.", least=-(2**31))] = 0
    patience: Annotated[
        int,
        Option(
            help="Stop after this many looks at the validation split without a better loss; 0 never stops early.",
            least=0,
        ),
    ] = 5
    limit: Annotated[int | None, Option(help="Take this many questions of each split at most.", least=1)] = (
        None
    )
    baselines: Annotated[bool, Option(help="Also train LoRA and IA3 on the same batches.")] = False
    evaluate_every: Annotated[
        int, Option(help="Steps between two looks at the validation split.", least=1, on_command_line=False)
    ] = 20
    delta: Annotated[
        float,
        Option(
            help="How far the sensitivity ranking moves a scalar from 1, both ways.", on_command_line=False
        ),
    ] = 0.25
    report_split: Annotated[
        Split, Option(help="The split that the final table is measured on.", on_command_line=False)
    ] = "validation"
    cache_mib: Annotated[
        int,
        Option(
            help="Memory for cached prefixes under scope last, in MiB; 0 for none.",
            least=0,
            on_command_line=False,
        ),
    ] = 512

    @property
    def replay_share(self) -> float:
        """``replay``, or what it is where none is given."""
        return REPLAY if self.replay is None else self.replay

    def __post_init__(self) -> None:
        check(self)
        for name, value in (("--bound", self.bound), ("--lr", self.learning_rate), ("delta", self.delta)):
            if not value > 0:
                raise UserError(f"{name} {value} is refused: give a number above 0")
        if self.replay is not None and not 0 <= self.replay < 1:
            raise UserError(f"--replay {self.replay} is refused: give a share from 0 to below 1")
