"""Golden cases: what a package's self-test compares with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from scale_export.core import limits
from scale_export.core.records import Array, Float32, Json
from scale_export.core.words import Precision
from scale_export.device.pixels import picture_inputs
from scale_export.device.selftest import (
    CASES,
    COUNT,
    EXPECTED,
    FOLDER,
    PIXELS,
    SCHEMA,
    STRENGTHS,
    GoldenCase,
)

from .cases import Case
from .contents import Statement


def due_cases(cases: Sequence[Case], *, gated: bool) -> list[tuple[int, float]]:
    """The parity cases that a self-test holds, by index, and the strength of each.

    Where scalars are inputs, the first is asked at lower strengths too.
    """
    due = [(index, 1.0) for index in range(min(COUNT, len(cases)))]
    return due + [(0, strength) for strength in STRENGTHS] if due and gated else due


def golden_statements(
    directory: Path, cases: Sequence[Case], answers: Sequence[str] | None, *, gated: bool
) -> Iterator[Statement]:
    """What a package's golden cases say, against the same cases asked anew.

    Expected logits are the self-test's own matter. A path, and the answer that ends on it, are not compared where the
    reference hung on a near-tie, which another machine may decide otherwise.
    """
    table: Json = json.loads((directory / CASES).read_text(encoding="utf-8"))
    found = [GoldenCase(**entry) for entry in table["cases"]] if isinstance(table, dict) else []
    due = due_cases(cases, gated=gated)
    yield Statement(name=f"the count of cases in {CASES}", found=len(found), expected=len(due))
    for index, (own, (number, strength)) in enumerate(zip(found, due, strict=False)):
        where, case = f"of case {index} in {CASES}", cases[number]
        yield Statement(name=f"the strength {where}", found=own.strength, expected=strength)
        yield Statement(name=f"the prompt {where}", found=own.prompt, expected=case.prompt.text)
        ids = case.inputs["input_ids"][0].tolist()
        yield Statement(name=f"the token ids {where}", found=[*own.input_ids], expected=ids)
        pictures = [_pixels(directory / FOLDER / name) for name in own.images]
        shown = [_digest(image) for image in case.prompt.images]
        yield Statement(name=f"the pictures {where}", found=pictures, expected=shown)
        if case.hangs_on_near_tie:
            continue
        yield Statement(name=f"the tokens {where}", found=[*own.tokens], expected=[*case.tokens])
        if answers is not None and strength == 1 and case.answer[-1] in case.rules.end_tokens:
            yield Statement(name=f"the answer {where}", found=own.answer, expected=answers[number])


def _pixels(path: Path) -> str:
    with Image.open(path) as image:
        return _digest(image)


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def write_selftest(
    directory: Path,
    cases: Sequence[Case],
    logits: Sequence[Float32],
    weaker: Sequence[Float32],
    answers: Sequence[str] | None,
    precision: Precision,
) -> None:
    """Write the first ``COUNT`` cases: prompts, pictures with their pixel values, the reference's tokens and answers.

    Args:
        logits: the export's, of every case.
        weaker: the export's of the first case at each of ``STRENGTHS``; empty where scalars are no inputs.
        answers: None where the reference was not asked for any.
    """
    folder = directory / FOLDER
    folder.mkdir()
    golden, expected, pixels = list[GoldenCase](), list[Float32](), dict[str, Array]()
    kept: dict[str, str] = {}
    for number, strength in due_cases(cases, gated=bool(weaker)):
        case = cases[number]
        images = tuple(f"{number}-{place}.png" for place in range(len(case.prompt.images)))
        if strength == 1:
            for name, image in zip(images, case.prompt.images, strict=True):
                image.save(folder / name)
        golden.append(
            GoldenCase(
                name=case.prompt.name,
                images=images,
                prompt=case.prompt.text,
                input_ids=tuple(case.inputs["input_ids"][0].tolist()),
                tokens=case.tokens,
                answer=answers[number] if answers is not None and strength == 1 else None,
                strength=strength,
                pixels=_keep(picture_inputs(case.inputs), str(number), kept, pixels),
            )
        )
        expected.append(logits[number] if strength == 1 else weaker[STRENGTHS.index(strength)])
    table = {
        "schema": SCHEMA,
        "tolerance": limits.SELFTEST_RELATIVE[precision],
        "gate_response": list(limits.GATE_RESPONSE),
        "cases": [asdict(case) for case in golden],
    }
    text = json.dumps(table, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / CASES).write_text(text + "\n", encoding="utf-8")
    save_file({str(i): np.ascontiguousarray(rows) for i, rows in enumerate(expected)}, directory / EXPECTED)
    save_file(pixels, directory / PIXELS)


def _keep(
    inputs: Mapping[str, Array], label: str, kept: dict[str, str], pixels: dict[str, Array]
) -> str | None:
    """Add what pictures made to ``pixels``, once for all cases that show the same; what the names begin with."""
    if not inputs:
        return None
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(f"{name} {value.shape}".encode() + value.tobytes())
    if digest.hexdigest() not in kept:
        kept[digest.hexdigest()] = label
        pixels.update({f"{label}.{name}": value for name, value in inputs.items()})
    return kept[digest.hexdigest()]
