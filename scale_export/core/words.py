"""The fixed words of options, records and files. No framework is imported here: the command line speaks them too."""

from __future__ import annotations

from typing import Literal, get_args

Scope = Literal["last", "all"]
"""Which positions scalars act on: the last token of each step, or every token (``docs/scale.md``)."""
MlpSite = Literal["output", "post_norm"]
FoldMode = Literal["weights", "gate", "two-phase"]
FOLD_MODES: tuple[FoldMode, ...] = get_args(FoldMode)
Precision = Literal["float32", "float16", "int8", "int4", "w8a8", "stored"]
"""What weights are written in: ``int8`` and ``int4`` in blocks, ``w8a8`` in int8 by output channel with products whose
inputs are int8 too; ``stored`` keeps the dtypes of the base checkpoint."""
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4", "w8a8")
"""The precisions of graphs."""
BLOCKWISE: tuple[Precision, ...] = ("int8", "int4")
"""Those whose weights alone are integers, with a scale for each block of columns."""
INTEGER: tuple[Precision, ...] = (*BLOCKWISE, "w8a8")
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""How many columns a block may have: what ONNX Runtime's kernels and its rounding of weights take."""
FloatType = Literal["float32", "float16"]
ComputeUnits = Literal["all", "cpu_and_gpu", "cpu_and_ne", "cpu_only"]
Activation = Literal["silu", "gelu_tanh"]
Weighting = Literal["uniform", "last", "image"]
"""What a calibration token counts for. ``uniform``: all the same; ``last``: the positions that predict the answer
together as much as all others of their question; ``image``: the image tokens likewise."""
ParityMode = Literal["auto", "full", "streamed", "files"]
"""Load the float32 reference, stream it from disk, or run no model and check a checkpoint's files alone; ``auto``
decides between the first two by memory."""
Split = Literal["train", "calibration", "validation", "test"]
Scoring = Literal["strict", "official"]
"""Whose rules judge answers: ours, or those of a question set's authors (``questions.scoring``)."""
ScalarValues = Literal["s", "a"]
"""What scalars of another trainer are: the effective s, or the a that was trained, with s = 1 + r·tanh(a)."""
