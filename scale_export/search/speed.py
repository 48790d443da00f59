"""How many matrices must be narrow for a decoder to be fast enough on this machine.

The model: seconds per token = fixed + bytes read / bandwidth, through two measured points. It says where to look, and a
measurement decides: what is slower than predicted is narrowed further, at most ``TRIES`` times, and then altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scale_export.core.errors import UserError

TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedModel:
    """``fixed`` seconds per token beside reading its bytes at ``bandwidth`` bytes per second."""

    fixed: float
    bandwidth: float

    @classmethod
    def through(cls, wide: tuple[int, float], narrow: tuple[int, float]) -> SpeedModel:
        """The model through two points of bytes and seconds; the narrow one is smaller and faster."""
        bandwidth = (wide[0] - narrow[0]) / (wide[1] - narrow[1])
        return cls(fixed=narrow[1] - narrow[0] / bandwidth, bandwidth=bandwidth)

    def seconds(self, size: int) -> float:
        """Per token, of a decoder that reads ``size`` bytes."""
        return self.fixed + size / self.bandwidth


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One measured decoder.

    Attributes:
        narrow: how many of the order's matrices have 4 bits.
        size: bytes of codes and scales that a token reads.
        predicted, measured: tokens per second; nothing is predicted of the two points that the model goes through.
    """

    narrow: int
    size: int
    predicted: float | None
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedChoice:
    """What was measured on the way to ``wanted`` tokens per second, in that order, and what was chosen of it.

    ``model`` is None where nothing had to be predicted, since 8 bits everywhere were fast enough.
    """

    wanted: float
    timed: tuple[Timed, ...]
    chosen: Timed
    model: SpeedModel | None = None

    def lines(self) -> list[str]:
        """All that was measured, a sentence each."""
        said = []
        for timed in self.timed:
            predicted = "" if timed.predicted is None else f"{timed.predicted:.4g} tokens/s predicted, "
            mark = " <- chosen" if timed is self.chosen else ""
            words = f"{timed.narrow} narrow matrices, {timed.size:,} bytes per token: {predicted}"
            said.append(f"{words}{timed.measured:.4g} tokens/s measured{mark}")
        if self.model is not None:
            fixed, bandwidth = 1e3 * self.model.fixed, self.model.bandwidth / 1e9
            said.append(f"the model: {fixed:.3g} ms per token, and its bytes at {bandwidth:.3g} GB/s")
        return said


def choose_speed(wanted: float, sizes: Sequence[int], seconds_of: Callable[[int], float]) -> SpeedChoice:
    """The fewest narrow matrices that reach ``wanted`` tokens per second.

    Args:
        sizes: bytes that a token reads with the first 0, 1, … of the order narrow.
        seconds_of: measures a token with that many narrow.

    Raises:
        UserError: not even narrow matrices throughout are fast enough.
    """
    last = len(sizes) - 1
    wide = Timed(narrow=0, size=sizes[0], predicted=None, measured=1 / seconds_of(0))
    if wide.measured >= wanted:
        return SpeedChoice(wanted=wanted, timed=(wide,), chosen=wide)
    narrow = Timed(narrow=last, size=sizes[last], predicted=None, measured=1 / seconds_of(last))
    if narrow.measured < wanted:
        fastest, bits = max((wide.measured, "8"), (narrow.measured, "4"))
        raise UserError(
            f"no choice of bits meets --budget decode={wanted:g}tok/s: the fastest on this machine was "
            f"{fastest:.4g} tokens/s, with {bits} bits everywhere; ask for less, or give a larger --block-size"
        )
    timed, before, first = [wide, narrow], wide, None
    for _ in range(TRIES):
        model = SpeedModel.through((before.size, 1 / before.measured), (narrow.size, 1 / narrow.measured))
        first = first or model
        between = range(before.narrow + 1, last)
        count = next((n for n in between if model.seconds(sizes[n]) <= 1 / wanted), None)
        if count is None:
            break
        predicted = 1 / model.seconds(sizes[count])
        before = Timed(narrow=count, size=sizes[count], predicted=predicted, measured=1 / seconds_of(count))
        timed.append(before)
        if before.measured >= wanted:
            return SpeedChoice(wanted=wanted, timed=tuple(timed), chosen=before, model=first)
    return SpeedChoice(wanted=wanted, timed=tuple(timed), chosen=narrow, model=first)
