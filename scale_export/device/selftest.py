"""Golden cases inside a package: a device checks itself without the base model and without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from scale_export.core import limits
from scale_export.core.compare import Leg, relative_error
from scale_export.core.records import Float32, Precision

from .package import Package

if TYPE_CHECKING:
    from scale_export.proof.cases import Case

FOLDER = "selftest"
CASES = f"{FOLDER}/cases.json"
EXPECTED = f"{FOLDER}/expected.safetensors"
COUNT = 4


def write_selftest(
    directory: Path,
    cases: Sequence[Case],
    logits: Sequence[Float32],
    answers: Sequence[str] | None,
    precision: Precision,
) -> None:
    """Write the first ``COUNT`` cases: prompts, pictures, the reference's tokens and answers, the export's logits.

    ``answers`` is None where the reference was not asked for any.
    """
    folder = directory / FOLDER
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for index, case in enumerate(cases[:COUNT]):
        images = []
        for number, image in enumerate(case.prompt.images):
            name = f"{index}-{number}.png"
            image.save(folder / name)
            images.append(name)
        entries.append(
            {
                "name": case.prompt.name,
                "images": images,
                "prompt": case.prompt.text,
                "input_ids": case.inputs["input_ids"][0].tolist(),
                "tokens": list(case.tokens),
                "answer": None if answers is None else answers[index],
            }
        )
    table = {"schema": 1, "tolerance": limits.SELFTEST_RELATIVE[precision], "cases": entries}
    text = json.dumps(table, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / CASES).write_text(text + "\n", encoding="utf-8")
    save_file({str(i): np.ascontiguousarray(logits[i]) for i in range(len(entries))}, directory / EXPECTED)


def run_selftest(package: Package) -> Leg:
    """Ask the package its own golden cases on this machine.

    Passes where every prompt gives the recorded token ids and logits within the recorded tolerance. Whether
    the answers are PyTorch ScAle's is reported beside.
    """
    table = json.loads(package.files.path(CASES).read_text(encoding="utf-8"))
    expected = load_file(package.files.path(EXPECTED))
    worst, ids, answers = 0.0, True, []
    for index, case in enumerate(table["cases"]):
        images = [Image.open(package.files.path(f"{FOLDER}/{name}")) for name in case["images"]]
        inputs = package.prepare(images, case["prompt"])
        same = inputs["input_ids"][0].tolist() == case["input_ids"]
        ids = ids and same
        if same:
            logits = package.generator.forced_logits(inputs, case["tokens"])
            worst = max(worst, relative_error(expected[str(index)], logits))
        if case["answer"] is not None:
            answers.append(package.answer(images, case["prompt"], max_new_tokens=16) == case["answer"])
    return {
        "metric": "max |Δlogit| / max |logit| against the logits recorded at export",
        "value": worst if ids and np.isfinite(worst) else None,
        "limit": table["tolerance"],
        "cases": len(table["cases"]),
        "ids_identical": ids,
        "answers_as_pytorch": sum(answers) if answers else None,
        "passed": bool(ids and worst <= table["tolerance"]),
    }
