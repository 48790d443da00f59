"""Names of code and files in docstrings, pages and TOML comments: what they name exists."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.architecture import PACKAGE, modules
from tests.helpers.pages import PAGES

ROOT = Path(__file__).parents[2]
CODE = sorted(PACKAGE.rglob("*.py"))
TABLES = [*ROOT.glob("targets/*.toml"), *ROOT.glob("calib/*/*.toml")]
SKIPPED = [ROOT / "CHANGELOG.md"]  # it speaks of what was

FOLDERS = ("scale_export/", "tests/", "docs/", "examples/", "benchmarks/", "targets/", "calib/")
OTHERS = frozenset({"embedding.codes", "embedding.scales", "python/src/coreai_models/vlm/export.py"})
"""Tensors, and a file of Apple's, that are named like ours."""
FILE_ENDINGS = frozenset(
    {"bin", "data", "html", "json", "mlpackage", "onnx", "proto", "safetensors", "toml", "txt"}
)


def members(tree: ast.AST) -> set[str]:
    """Every name that a module or class defines, at any depth: functions, classes, fields, constants, ``self.x``."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.alias(name=name, asname=asname):
                found.add(asname or name)
    return found


def known() -> dict[str, set[str]]:
    """Module, room or class of the package, by its last name → what it holds."""
    found: dict[str, set[str]] = defaultdict(set)
    for dotted, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        *rooms, stem = dotted.split(".")
        found[stem] |= members(tree)
        for room, inner in pairwise([*rooms, stem]):
            found[room].add(inner)
        found["scale_export"].add(dotted.split(".")[0])
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name] |= members(node)
    found["scale_export"] |= found["__init__"]
    return found


def libraries() -> set[str]:
    """What the package imports from elsewhere, by its first name."""
    found = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ImportFrom(module=str(name), level=0):
                    found.add(name.partition(".")[0])
                case ast.Import(names=names):
                    found |= {alias.name.partition(".")[0] for alias in names}
    return found - {"scale_export"}


KNOWN = known()
LIBRARIES = libraries()
NAMES = set().union(*KNOWN.values()) | KNOWN.keys()
FILES = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def wrong(name: str) -> bool:
    """Whether a name is one of ours, by its form, and doesn't exist."""
    if name in OTHERS or re.search(r"[A-Z]{4}|[*{<]", name):  # NAME, MODEL_TYPE, globs
        return False
    if name.startswith(FOLDERS):
        return not (ROOT / name).exists()
    if name.endswith(".py"):
        return not any(f"/{file}".endswith(f"/{name}") for file in FILES)
    if name.startswith("scale_export."):
        return any(
            after not in KNOWN[before] for before, after in pairwise(name.split(".")) if before in KNOWN
        )
    head, _, member = name.partition(".")
    ours = head in KNOWN.keys() - LIBRARIES and member.isidentifier() and member not in FILE_ENDINGS
    return ours and member not in KNOWN[head]


def quoted(path: Path) -> Iterator[str]:
    """What a file names: in docstrings all that stands in backticks, elsewhere paths and ``scale_export.x.y``."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from re.findall(r"``([\w./]+)``", text)
        seen = re.findall(r"\b[Ss]ee ``([a-z_]\w*)``", text)
        yield from (f"scale_export.{name}" for name in seen if name not in NAMES)
    else:
        yield from (n for n in re.findall(r"`([\w./*<>{}]+)`", text) if "/" in n or n.endswith(".py"))
        yield from (found.rstrip("./") for found in re.findall(r"\bscale_export[./][\w./]+", text))


@pytest.mark.parametrize(
    "path",
    [p for p in (*CODE, *PAGES, *TABLES) if p not in SKIPPED],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_what_is_named_exists(path: Path):
    assert not sorted({name for name in quoted(path) if wrong(name)})


@pytest.mark.parametrize(
    "name",
    [
        "streaming.must_streams",
        "Family.no_such",
        "scale_export/nowhere.py",
        "scale_export.datasets",
        "nowhere.py",
    ],
)
def test_a_stale_name_is_found(name: str):
    assert wrong(name)
