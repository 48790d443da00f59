"""``scale-export train``: ScAle scalars on a frozen model, written as a coefficient file with its evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from .adapter import ScaleHandle, attach, attach_trainable
from .answers import answer_questions, is_correct
from .base import open_base
from .coefficients import make_coefficients, save_coefficients
from .datasets import Kind, Question, load_questions
from .errors import UserError
from .records import Bound, Coefficients, Float32
from .training.baselines import BASELINES, import_peft, trained_baseline
from .training.examples import Example, encode_examples
from .training.loop import KINDS, Fit, FullScorer, PrefixScorer, Scorer, fit
from .training.options import ProgressCallback, TrainOptions, silent
from .training.parameters import ProbeScales, ScaleParameters, chosen_layers
from .training.prefix import PrefixStore, can_cache_prefix
from .training.sensitivity import Sensitivity, measure_sensitivity

__all__ = ["TrainOptions", "TrainReport", "TrainResult", "run_training", "train_scale", "training_table"]
