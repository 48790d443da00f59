"""The rooms of ``scale_export``, floor by floor: imports point down, and run in no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture import FLOORS, PACKAGE, Arrow, arrows, circle, modules, room_of, upward

TESTS = Path(__file__).parent
ROOMS = [room for rooms in FLOORS for room in rooms]


@pytest.fixture(scope="module")
def found() -> list[Arrow]:
    return arrows()


def unplaced(package: Path) -> set[str]:
    """The rooms of a package that stand on no floor."""
    return {room_of(module) for module in modules(package)} - set(ROOMS)


def test_every_room_has_one_floor():
    assert unplaced(PACKAGE) == set()
    assert {room_of(module) for module in modules()} == set(ROOMS) and len(set(ROOMS)) == len(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str, found: list[Arrow]):
    assert upward([arrow for arrow in found if arrow.rooms[0] == room]) == []


def test_no_imports_run_in_a_circle(found: list[Arrow]):
    assert circle(found) is None


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package of four rooms whose imports point down, to plant something in."""
    package = tmp_path / "scale_export"
    plant(package / "core" / "errors.py", "class UserError(Exception): ...")
    plant(package / "charts" / "style.py", "import math")
    plant(package / "mil" / "package.py", "from scale_export.core.errors import UserError")
    plant(package / "pipeline" / "fold.py", "from scale_export.mil import package\n\ndef fold_package(): ...")
    for folder in (package, *package.iterdir()):
        (folder / "__init__.py").touch()
    assert upward(arrows(package)) == [] and circle(arrows(package)) is None and unplaced(package) == set()
    return package


def plant(file: Path, lines: str) -> None:
    """Add lines at the end of a module, which may not be there yet."""
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("a", encoding="utf-8") as module:
        module.write(f"\n\n{lines}\n")


@pytest.mark.parametrize(
    "lines",
    [
        "from scale_export.pipeline.fold import fold_package",
        "import scale_export.pipeline.fold",
        "from ..pipeline import fold",
        "def late():\n    from scale_export.pipeline.fold import fold_package",
        "if TYPE_CHECKING:\n    from scale_export.pipeline.fold import FoldRequest",
    ],
)
def test_a_planted_import_from_above_is_found(small: Path, lines: str):
    plant(small / "core" / "errors.py", lines)
    assert upward(arrows(small)) == [Arrow("core.errors", "pipeline.fold")]


def test_a_planted_import_from_a_neighbour_is_found(small: Path):
    plant(small / "charts" / "style.py", "from scale_export.core.errors import UserError")
    assert upward(arrows(small)) == [Arrow("charts.style", "core.errors")]


def test_a_planted_circle_inside_a_room_is_found(small: Path):
    plant(small / "core" / "first.py", "from .second import x")
    plant(small / "core" / "second.py", "def late():\n    from scale_export.core import first")
    found = arrows(small)
    assert upward(found) == []
    assert set(circle(found) or ()) == {"core.first", "core.second"}


def test_a_planted_room_without_a_floor_is_found(small: Path):
    plant(small / "attic" / "box.py", "")
    assert unplaced(small) == {"attic"}


def borrowed(source: str) -> set[str]:
    """The test modules and conftests that a test imports from, relative imports among them."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
    parts = {part for name in names for part in name.split(".")}
    return {part for part in parts if part == "conftest" or part.startswith("test_")}


def test_tests_import_helpers_and_never_one_another():
    for path in sorted(TESTS.rglob("*.py")):
        assert borrowed(path.read_text(encoding="utf-8")) == set(), path.relative_to(TESTS)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from tests.model.test_decoder import gate_of", "test_decoder"),
        ("from tests.model import test_decoder", "test_decoder"),
        ("def late():\n    import tests.model.test_decoder as other", "test_decoder"),
        ("from .conftest import PREFILL", "conftest"),
        ("from tests import conftest", "conftest"),
    ],
)
def test_a_planted_import_of_a_test_is_found(source: str, name: str):
    assert borrowed(source) == {name}
