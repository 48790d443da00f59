"""Values that are known before a run: each is computed once, when something that runs first needs it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from scale_export.core.records import Array

Compute = Callable[[Sequence[Array]], Sequence[Array]]
"""The values of a node's operands → its results."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Result ``index`` of node ``node`` of some ``Constants``; equal ones have equal values."""

    node: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class _Node:
    operands: tuple[Constant, ...]
    compute: Compute


class Constants:
    """The constants of all functions of a model, as nodes that lie in the order of their computation."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._nodes: list[_Node] = []
        self._results: dict[int, Sequence[Array]] = {}

    def node(self, key: Hashable, compute: Compute, operands: tuple[Constant, ...] = ()) -> int:
        """The node of a key, added where the key is new; its operands' nodes were added before it."""
        number = self._numbers.setdefault(key, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(_Node(operands, compute))
        return number

    def value(self, constant: Constant) -> Array:
        """The value of a constant, kept for the next that asks."""
        if constant.node not in self._results:
            self._compute(constant.node)
        return self._results[constant.node][constant.index]

    def _compute(self, number: int) -> None:
        """Compute a node and what it is made of; nodes that are only read from the file on the way aren't kept."""
        needed: set[int] = set()
        waiting = [number]
        while waiting:
            at = waiting.pop()
            if at not in needed and at not in self._results:
                needed.add(at)
                waiting += (operand.node for operand in self._nodes[at].operands)
        passing: dict[int, Sequence[Array]] = {}
        for at in sorted(needed):
            node = self._nodes[at]
            given = [(self._results.get(o.node) or passing[o.node])[o.index] for o in node.operands]
            kept = self._results if node.operands or at == number else passing
            kept[at] = node.compute(given)
