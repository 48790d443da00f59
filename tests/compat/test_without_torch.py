"""Running a package imports no torch where it is installed, and leaves the process's transformers alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers.image_processing_utils import select_best_resolution

from scale_export import families
from scale_export.compat.without_torch import without_torch
from scale_export.device.prompts import encode_messages, user_message
from scale_export.families.llava_next import best_resolution
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture

QUESTION = "is the red circle left of the blue square ?"
SIZES = ((64, 48), (45, 130))

EVERY_FAMILY = """
import sys
from contextlib import nullcontext
from pathlib import Path
import numpy as np
from scale_export.compat.without_torch import without_torch
from scale_export.device.prompts import encode_messages, user_message
from scale_export.families import load_family
from tests.helpers.pictures import picture

here, hidden, question, names = Path(sys.argv[1]), sys.argv[2] == "hidden", sys.argv[3], sys.argv[4:]
for name in names:
    with without_torch() if hidden else nullcontext():
        processor = load_family(name).load_processor(here / name)
    due = np.load(here / f"{name}.npz")
    for index, size in enumerate(((64, 48), (45, 130))):
        found = encode_messages(processor, [user_message([picture(index, size)], question)])
        assert {f"{index}.{key}" for key in found} == {key for key in due if key.startswith(f"{index}.")}, name
        for key, value in found.items():
            assert value.dtype == due[f"{index}.{key}"].dtype and np.array_equal(value, due[f"{index}.{key}"]), name
    processor.tokenizer.decode([5, 6], skip_special_tokens=True)
loaded = {name for name in ("torch", "transformers") if name in sys.modules}
assert loaded == (set() if hidden else {"torch", "transformers"}), loaded
"""

AS_IT_WAS = """
import logging, os, sys
from pathlib import Path
import transformers, transformers.utils.logging
from scale_export.compat.without_torch import without_torch
from scale_export.families import load_family

def state():
    log = logging.getLogger("transformers")
    modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("torch", "transformers")}
    return modules, log.level, log.propagate, list(log.handlers), dict(os.environ)

before, kinds = state(), []
for _ in range(2):
    with without_torch():
        kinds.append(type(load_family("smolvlm").load_processor(Path(sys.argv[1]))))
    assert state() == before
try:
    with without_torch():
        raise KeyError
except KeyError:
    assert state() == before
assert kinds[0] is kinds[1]  # imported once
import torch
with without_torch():
    assert sys.modules["torch"] is torch
    own = load_family("smolvlm").load_processor(Path(sys.argv[1]))
assert type(own) is not kinds[0]
turn = {"role": "user", "content": [{"type": "text", "text": "where ?"}]}
given = own.apply_chat_template([turn], tokenize=True, return_dict=True, return_tensors="pt")
assert isinstance(given["input_ids"], torch.Tensor)
"""

RUN = """
import sys
from scale_export.__main__ import main
try:
    main()
finally:
    assert not {"torch", "transformers", "onnx"} & set(sys.modules), "imported"
"""


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family's processor, and what it makes of a question where torch is there."""
    here = tmp_path_factory.mktemp("processors")
    for name, recipe in FAMILIES.items():
        recipe.prepared()[1].save_pretrained(here / name)
        processor = families.load_family(name).load_processor(here / name)
        made = {
            f"{index}.{key}": value
            for index, size in enumerate(SIZES)
            for key, value in encode_messages(
                processor, [user_message([picture(index, size)], QUESTION)]
            ).items()
        }
        np.savez(here / f"{name}.npz", **made)  # type: ignore[arg-type]
    return here


def test_every_familys_processor_gives_the_same_bits_without_torch(processors: Path):
    done = child(EVERY_FAMILY, processors, "hidden", QUESTION, *FAMILIES)
    assert done.returncode == 0, done.stderr


def test_torch_would_be_imported_without_it(processors: Path):
    done = child(EVERY_FAMILY, processors, "plain", QUESTION, "llava")
    assert done.returncode == 0, done.stderr


def test_the_process_keeps_its_own_transformers(processors: Path):
    done = child(AS_IT_WAS, processors / "smolvlm")
    assert done.returncode == 0, done.stderr


def test_run_imports_neither_torch_nor_transformers_for_others_to_see(package: Path, tmp_path: Path):
    file = tmp_path / "picture.png"
    picture().save(file)
    done = child(RUN, "run", package, "--image", file, "--prompt", "where is the circle ?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "PyTorch" not in done.stderr


def test_where_torch_is_imported_nothing_is_hidden():
    before = dict(sys.modules)
    with without_torch():
        assert dict(sys.modules) == before


@pytest.mark.parametrize(
    "offered", [[[48, 96], [96, 48], [96, 96]], [[336, 672], [672, 336], [672, 672], [1008, 336]]]
)
def test_the_best_resolution_is_transformers_own(offered: list[list[int]]):
    rng = np.random.default_rng(0)
    for size in rng.integers(1, 1500, (500, 2)).tolist():
        assert best_resolution(size, offered) == tuple(select_best_resolution(tuple(size), offered))
