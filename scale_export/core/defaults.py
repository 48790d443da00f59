"""Defaults that more than one room speaks of."""

from __future__ import annotations

from typing import Final

from .words import ParityMode, Scoring, Weighting

CALIBRATION_QUESTIONS: Final = 128
"""How many questions a model is calibrated on at the most."""
CALIBRATION: Final = "self"
"""What a model is calibrated on where no question set is known: what it writes itself."""
WRITTEN_SEQUENCES: Final = 32
"""How many chats a model writes to be calibrated on."""
TEXT_TOKENS: Final = 64
"""The window of a text that a model is calibrated on, in tokens."""
WEIGHTING: Final[Weighting] = "uniform"
"""What a calibration token counts for."""
SCORING: Final[Scoring] = "strict"
"""Whose rules judge answers."""
PARITY: Final[ParityMode] = "auto"
"""Whether the float32 reference is held in memory."""
QUESTION_SET: Final = "gridworld"
"""The question set that needs nothing from a disk: to train on, and for prompts where no other set is known."""
ANSWER_TOKENS: Final = 64
"""The longest answer, in tokens."""
BENCH_PROMPT_TOKENS: Final = 128
"""The prompt behind which decoding is timed."""
BENCH_REPEATS: Final = 5
"""How often it is timed; the median counts."""
