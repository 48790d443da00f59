"""Golden cases: what a package's self-test compares with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from scale_export.core import limits
from scale_export.core.records import Float32, Json
from scale_export.core.words import Precision
from scale_export.device.selftest import CASES, COUNT, EXPECTED, FOLDER, GoldenCase

from .cases import Case
from .contents import Statement


def golden_statements(
    directory: Path, cases: Sequence[Case], answers: Sequence[str] | None
) -> Iterator[Statement]:
    """What a package's golden cases say, against the same cases asked anew.

    Expected logits are the self-test's own matter. A path, and the answer that ends on it, are not compared where the
    reference hung on a near-tie, which another machine may decide otherwise.
    """
    table: Json = json.loads((directory / CASES).read_text(encoding="utf-8"))
    found = [GoldenCase(**entry) for entry in table["cases"]] if isinstance(table, dict) else []
    due = cases[:COUNT]
    yield Statement(name=f"the count of cases in {CASES}", found=len(found), expected=len(due))
    for index, (own, case) in enumerate(zip(found, due, strict=False)):
        where = f"of case {index} in {CASES}"
        yield Statement(name=f"the prompt {where}", found=own.prompt, expected=case.prompt.text)
        ids = case.inputs["input_ids"][0].tolist()
        yield Statement(name=f"the token ids {where}", found=[*own.input_ids], expected=ids)
        pictures = [_pixels(directory / FOLDER / name) for name in own.images]
        shown = [_digest(image) for image in case.prompt.images]
        yield Statement(name=f"the pictures {where}", found=pictures, expected=shown)
        if case.hangs_on_near_tie:
            continue
        yield Statement(name=f"the tokens {where}", found=[*own.tokens], expected=[*case.tokens])
        if answers is not None and case.answer[-1] in case.rules.end_tokens:
            yield Statement(name=f"the answer {where}", found=own.answer, expected=answers[index])


def _pixels(path: Path) -> str:
    with Image.open(path) as image:
        return _digest(image)


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


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
