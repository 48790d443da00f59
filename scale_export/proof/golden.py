"""Golden cases: what a package's self-test compares with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from scale_export.core import limits
from scale_export.core.records import Float32
from scale_export.core.words import Precision
from scale_export.device.selftest import CASES, COUNT, EXPECTED, FOLDER, GoldenCase

from .cases import Case


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
    golden = []
    for index, case in enumerate(cases[:COUNT]):
        images = tuple(f"{index}-{number}.png" for number in range(len(case.prompt.images)))
        for name, image in zip(images, case.prompt.images, strict=True):
            image.save(folder / name)
        golden.append(
            GoldenCase(
                name=case.prompt.name,
                images=images,
                prompt=case.prompt.text,
                input_ids=tuple(case.inputs["input_ids"][0].tolist()),
                tokens=case.tokens,
                answer=None if answers is None else answers[index],
            )
        )
    entries = [asdict(case) for case in golden]
    table = {"schema": 1, "tolerance": limits.SELFTEST_RELATIVE[precision], "cases": entries}
    text = json.dumps(table, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / CASES).write_text(text + "\n", encoding="utf-8")
    save_file({str(i): np.ascontiguousarray(logits[i]) for i in range(len(golden))}, directory / EXPECTED)
