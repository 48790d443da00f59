"""Nothing in an operation can change unnoticed: every small change to its source makes one of its cases fail.

The changes: a number up and down by one or half as large again, a flag flipped, a string replaced, an operator or
comparison swapped, a sign or negation dropped, a condition negated, an argument left out, and a table's entry replaced
by its neighbour's.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from scale_export.mil.ops import MODULES, attention, registry

from .cases import CASES, passes

EQUIVALENT = {
    ("band_part", "-1 → -2"): "every negative number is no limit",
    ("einsum", "np.einsum(equation, *values, optimize=True) → np.einsum(equation, *values)"): "only slower",
    ("einsum", "True → False"): "only slower",
    ("erf", "2 → 3"): "at the table's end erf is 1 in float32",
    ("log", "1e-45 → 1.5e-45"): "both are the smallest float32",
}
"""Function and change → why no result can show it."""

GUARDS = {"strict"}
"""Arguments that only turn a malformed program into an error."""

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def replacements(node: ast.AST, role: str) -> Iterator[ast.AST]:  # noqa: PLR0912
    """What may stand in a node's place."""
    if role == "test":
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(float(value)):
            yield ast.Constant(value * 1.5)
        case ast.Constant(str()):
            yield ast.Constant("mutant")
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.Compare(left, [operator], right):
            yield ast.Compare(left, [COMPARISONS[type(operator)]()], right)
        case ast.UnaryOp(ast.USub() | ast.Not() as operator, operand):
            yield operand
            yield from (ast.UnaryOp(operator, new) for new in replacements(operand, "operand"))
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.Call(function, arguments, keywords):
            for dropped in (keyword for keyword in keywords if keyword.arg not in GUARDS):
                yield ast.Call(
                    function, arguments, [keyword for keyword in keywords if keyword is not dropped]
                )
            if len(arguments) > 1:
                yield ast.Call(function, arguments[:-1], keywords)
        case ast.Dict(keys, values):
            for at in range(len(values)):
                yield ast.Dict(keys, [*values[:at], values[at - 1], *values[at + 1 :]])


def sites(tree: ast.AST) -> Iterator[tuple[ast.AST, str, Callable[[ast.AST], None]]]:
    """Every node whose value matters, its role in its parent, and what puts another in its place."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "keys"):
            continue
        for at, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or is_documentation(child) or is_guard(child):
                continue

            def put(new: ast.AST, field: str = field, value: Any = value, at: int = at) -> None:
                if isinstance(value, list):
                    value[at] = new
                else:
                    setattr(tree, field, new)

            yield child, field, put
            if not (isinstance(child, ast.UnaryOp) and isinstance(child.operand, ast.Constant)):
                yield from sites(child)


def is_documentation(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg in GUARDS


def mutants(tree: ast.AST) -> Iterator[str]:
    """Change the tree in place, one change per step, and say which; the next step undoes it."""
    for node, role, put in sites(tree):
        for new in replacements(node, role):
            put(ast.fix_missing_locations(ast.copy_location(new, node)))
            yield f"{ast.unparse(node)} → {ast.unparse(new)}"
            put(node)


def executed(module: ModuleType, tree: ast.Module) -> dict[str, Callable[..., Any]]:
    """The operations that a module's changed source registers, in a registry of their own."""
    private: dict[str, Callable[..., Any]] = {}

    def op(function: Callable[..., Any]) -> Callable[..., Any]:
        private[function.__name__.rstrip("_")] = function
        return function

    names = vars(registry) | {"REGISTRY": private, "op": op, "move": op}
    namespace = names | {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(tree, str(module.__file__), "exec"), namespace)
    return namespace["REGISTRY"]


def reached(tree: ast.Module, operations: set[str]) -> dict[str, list[str]]:
    """Top-level name → the operations that use it, directly or not; tables are used by all."""
    used = {
        node.name: {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    uses: dict[str, list[str]] = {}
    for name in used:
        users, size = {name}, 0
        while size < len(users):
            size = len(users)
            users |= {other for other, names in used.items() if names & users}
        uses[name] = sorted(users & operations) or sorted(operations)
    return uses


def survivors(module: ModuleType) -> list[tuple[str, str]]:
    """The changes to a module that no case notices."""
    tree = ast.parse(open(str(module.__file__), encoding="utf-8").read())  # noqa: SIM115, PTH123
    tree.body = [node for node in tree.body if not is_import_of_registry(node) and not is_documentation(node)]
    operations = executed(module, tree).keys() & CASES.keys()
    uses = reached(tree, set(operations))
    found = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AnnAssign):
            continue
        name = node.name if isinstance(node, ast.FunctionDef) else ast.unparse(node.target)
        for change in mutants(node):
            if (name, change) not in EQUIVALENT and survives(
                module, tree, uses.get(name, sorted(operations))
            ):
                found.append((name, change))
    return found


def is_import_of_registry(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "registry"


def survives(module: ModuleType, tree: ast.Module, types: list[str]) -> bool:
    try:
        functions = executed(module, tree)
        return all(passes(functions[type], case) for type in types for case in CASES[type])
    except Exception:
        return False


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_change_is_noticed(module: ModuleType):
    assert survivors(module) == []


def test_a_change_without_a_case_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CASES, "softmax", [])
    names = {name for name, _ in survivors(attention)}
    assert "softmax" in names
    assert "layer_norm" not in names
