"""``docs/where.md``: every target and every runtime that people ask for, and how each line is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scale_export.core.words import FOLD_MODES
from scale_export.plan.targets import load_target, target_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/where.md").read_text(encoding="utf-8")
KNOWN = {"measured", "read", "not tried"}
ASKED_FOR = (
    "llama.cpp", "GGUF", "LM Studio", "Ollama", "transformers.js", "vLLM", "MLX", "onnxruntime-genai",
    "onnxruntime-web", "onnxruntime-node", "Android", "Core ML apps", "Core AI", "transformers",
)  # fmt: skip


def test_every_line_says_how_it_is_known():
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    known = [row[2].strip() for row in rows if len(row) == 3]
    tables = [part for part in re.split(r"\n\n", PAGE) if part.startswith("| runtime or app")]
    lines = sum(len(table.strip().splitlines()) - 2 for table in tables)
    assert len(tables) == 4 and lines == sum(word in KNOWN for word in known) > 20


@pytest.mark.parametrize("name", [*target_names(), *ASKED_FOR])
def test_it_names_what_people_ask_for(name: str):
    assert name in PAGE


@pytest.mark.parametrize("mode", FOLD_MODES)
def test_it_says_where_each_fold_mode_runs(mode: str):
    (row,) = re.findall(rf"^\| [^|]*`--fold {mode}`[^|]* \| ([^|]*) \|", PAGE, re.MULTILINE)
    for name in target_names():
        allowed = mode in load_target(name).fold_modes
        named = f"`{name}`" in row or "everywhere" in row
        assert named == allowed, (mode, name)


@pytest.mark.parametrize("page", ["README.md", "docs/checkpoint.md", "docs/package.md", "docs/commands.md"])
def test_pages_lead_to_it(page: str):
    assert re.search(r"\]\((docs/)?where\.md", (ROOT / page).read_text(encoding="utf-8"))
