"""What imports what: rooms, floors, arrows that point up, circles. ``python -m tests.architecture`` prints it.

A room is a folder of ``scale_export`` (or a file beside them); a floor is a set of rooms that import from lower floors
only. Every import counts: those inside functions, and those for type checking alone, too.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "scale_export"

FLOORS: Sequence[Sequence[str]] = (
    ("core", "charts", "compat"),
    ("coefficients", "package", "questions", "families", "mil"),
    ("device",),
    ("model",),
    ("quantize", "training"),
    ("plan",),
    ("backends",),
    ("proof", "search"),
    ("doctor", "report"),
    ("pipeline",),
    ("cli",),
    ("_optimum", "__main__", "__init__"),
)
"""From the ground up. A room imports from lower floors; the rooms of a floor know nothing of one another."""


@dataclass(frozen=True, slots=True, order=True)
class Arrow:
    """One import: from a module to another module of the package, by their dotted names below it."""

    source: str
    target: str

    @property
    def rooms(self) -> tuple[str, str]:
        """The rooms at its two ends."""
        return room_of(self.source), room_of(self.target)


def room_of(module: str) -> str:
    """The room that a module lies in."""
    return module.partition(".")[0]


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Dotted name below the package → file; the package's own is called ``__init__``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def arrows(package: Path = PACKAGE) -> list[Arrow]:
    """Every import from one module of the package to another."""
    known = modules(package)
    found = set()
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = package.name if name == "__init__" else f"{package.name}.{name}"
        folder = inside if path.name == "__init__.py" else inside.rpartition(".")[0]
        targets = {_module_of(imported, package.name, known) for imported in _imported(tree, folder)}
        found |= {Arrow(name, target) for target in targets if target not in (None, name)}
    return sorted(found)


def _imported(tree: ast.Module, folder: str) -> Iterator[str]:
    """The dotted names that a file imports; of ``from a import b`` it is ``a.b``, which may be a name in ``a``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: folder.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _module_of(imported: str, package: str, known: Mapping[str, Path]) -> str | None:
    """The module of the package that holds a dotted name; None where it is somebody else's."""
    if imported.partition(".")[0] != package:
        return None
    below = imported.removeprefix(package).removeprefix(".")
    while below and below not in known:
        below = below.rpartition(".")[0]
    return below or "__init__"


def upward(found: Sequence[Arrow], floors: Sequence[Sequence[str]] = FLOORS) -> list[Arrow]:
    """The arrows that don't point down: to a higher floor, or to another room of the same one."""
    floor = {room: level for level, rooms in enumerate(floors) for room in rooms}
    return [a for a in found if a.rooms[0] != a.rooms[1] and floor[a.rooms[1]] >= floor[a.rooms[0]]]


def circle(found: Sequence[Arrow]) -> list[str] | None:
    """Modules that import one another in a ring, the first one again at the end; None where there is no ring."""
    graph = TopologicalSorter[str]()
    for arrow in found:
        graph.add(arrow.source, arrow.target)
    try:
        graph.prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def depth(found: Sequence[Arrow]) -> int | None:
    """How many floors the imports between rooms need; None where they run in a circle."""
    below: dict[str, set[str]] = {room_of(m): set() for a in found for m in (a.source, a.target)}
    for source, target in (a.rooms for a in found):
        below[source] |= {target} - {source}
    floors: dict[str, int] = {}
    try:
        for room in TopologicalSorter(below).static_order():
            floors[room] = 1 + max((floors[other] for other in below[room]), default=0)
    except CycleError:
        return None
    return max(floors.values())


def any_count(package: Path = PACKAGE) -> int:
    """How often ``Any`` is written in the package, imports of it aside."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py"))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for tree in trees for node in ast.walk(tree))


def summary(package: Path = PACKAGE) -> dict[str, object]:
    """The figures, as JSON takes them; arrows that point up are None where a room stands on no floor of ours."""
    found = arrows(package)
    rooms = {room_of(module) for module in modules(package)}
    placed = rooms <= {room for level in FLOORS for room in level}
    return {
        "modules": len(modules(package)),
        "rooms": len(rooms),
        "floors": depth(found),
        "imports between rooms": len({a.rooms for a in found if a.rooms[0] != a.rooms[1]}),
        "imports that point up": [f"{a.source} -> {a.target}" for a in upward(found)] if placed else None,
        "circle": circle(found),
        "Any": any_count(package),
    }


if __name__ == "__main__":
    print(json.dumps(summary(Path(sys.argv[1]) if sys.argv[1:] else PACKAGE), indent=2))
