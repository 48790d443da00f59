"""Golden cases inside a package: a device checks itself without the base model and without torch."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from scale_export.core.compare import Leg, relative_error

from .package import Package

FOLDER = "selftest"
CASES = f"{FOLDER}/cases.json"
EXPECTED = f"{FOLDER}/expected.safetensors"
COUNT = 4


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
