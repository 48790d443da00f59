"""Why a package's integer codes are not those that its manifest promises: what differs, and what that points at.

Rules:
1. Codes of a calibrated method depend on the weights and on the calibration statistics, those of the embedding on the
   weights alone.
2. A changed calibration reaches every calibrated matrix from the first one on whose inputs it changed; damage stays
   where it is.
3. Other pictures or questions change the very first matrix's inputs. Where the first ones agree and all from some
   place on differ, the questions were right, and the function that they went through was another.
4. Statistics collected on another machine may differ in their last digits, which moves few codes and by one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING_SHARE = 0.01
"""The largest share of a matrix's codes that rule 4 is believed for."""


MOST = 0.8
"""The share of the matrices behind the first differing one that must differ too; small ones may round alike."""
MANY = 3
"""How few differing matrices are no more than damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How the codes of one matrix differ: their share, and the most that one moved, in steps of its grid."""

    share: float
    steps: int

    @classmethod
    def between(cls, expected: NDArray[np.uint8], found: NDArray[np.uint8]) -> Moved:
        """Of two matrices of codes, one per element."""
        steps = np.abs(expected.astype(np.int16) - found)
        return cls(share=float((steps > 0).mean()), steps=int(steps.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeEvidence:
    """What was seen of a package's codes.

    Attributes:
        names: every matrix, in the decoder's order.
        moved: those whose codes differ.
        calibrated: whether the method took statistics.
        recorded: whether the manifest records the statistics that were collected anew; None where it records none.
        embedding_right: whether the embedding, which takes no statistics, is right.
        made_with: what else the first differing matrix's codes are exactly those of, in words.
    """

    names: Sequence[str]
    moved: Mapping[str, Moved]
    calibrated: bool
    recorded: bool | None
    embedding_right: bool
    made_with: str | None = None

    @property
    def first(self) -> str:
        """The first matrix that differs."""
        return next(name for name in self.names if name in self.moved)

    @property
    def spread(self) -> bool:
        """Whether the matrices from the first differing one on differ, as good as all (rule 2)."""
        after = len(self.names) - self.names.index(self.first)
        return len(self.moved) >= max(MOST * after, MANY)

    def explain(self) -> str:
        """What differs and why, in a sentence."""
        worst = max(self.moved.values(), key=lambda moved: moved.share)
        how = (
            f"{len(self.moved)} of {len(self.names)} matrices hold other codes than quantizing the base model gives, "
            f"{self.first} the first ({worst.share:.2g} of the codes of the most moved, by up to {worst.steps} steps)"
        )
        return f"{how}: {self._cause(worst)}"

    def _cause(self, worst: Moved) -> str:
        if not self.calibrated:
            return "another base model or a damaged file, since nothing here was calibrated"
        if not self.spread:
            after = [n for n in self.names[self.names.index(self.first) :] if n not in self.moved]
            if not after:
                return "a damaged matrix, since all before it agree"
            return f"damage, since {after[0]}, which took the same calibration, agrees"
        if self.recorded is False and worst.share <= ROUNDING_SHARE and worst.steps == 1:
            return "perhaps only the rounding of statistics that another machine collected, which are not those here"
        if not self.embedding_right:
            return "another base model, since the embedding, which takes no calibration, differs too"
        return f"another calibration, {self._calibration()}"

    def _calibration(self) -> str:
        what = (
            "since the matrices differ from the very first on and the embedding, which takes none, agrees"
            if self.first == self.names[0]
            else f"by other scalars or weights, since all before {self.first} agree and those from there on differ"
        )
        known = {
            None: "",
            True: "; the manifest records the right statistics, and these codes were not made with them",
            False: "; the statistics that the manifest records are not those collected here",
        }[self.recorded]
        return f"{what}{known}{f'; they are {self.made_with}' if self.made_with else ''}"
