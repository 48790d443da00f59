"""What a package's own files must not be able to do."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import onnx
import pytest
from onnx import TensorProto, helper

import scale_export
from scale_export import UserError, open_package
from scale_export.cli.app import main
from scale_export.core import watch
from scale_export.core.watch import Bound, may_end
from scale_export.device import prompts
from scale_export.families import _processor_files
from tests.helpers.packages import plant
from tests.helpers.pictures import picture

SOURCES = sorted(Path(scale_export.__file__).parent.rglob("*.py"))


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    shutil.copytree(package, tmp_path / "package")
    return tmp_path / "package"


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{% set x = messages.append(1) %}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_reaches_nothing(template: str, copy: Path):
    plant(copy, "chat_template.jinja", template.encode())
    with pytest.raises(
        UserError, match=r"its processor fails on this conversation \(SecurityError|Undefined"
    ):
        open_package(copy).answer([picture()], "where ?", max_new_tokens=1)


def test_a_template_that_is_none_is_refused(copy: Path):
    plant(copy, "chat_template.jinja", b"{% for x in messages %}")
    with pytest.raises(UserError, match=r"its processor fails on this conversation \(TemplateSyntaxError"):
        open_package(copy).answer([picture()], "where ?", max_new_tokens=1)


def refused(place: Path, *words: str) -> str:
    """The one sentence in which a command ends, exit code 2, on its JSON's last line; its bounds are small.

    It runs in a child, since it ends its process.
    """
    said, complained = place / "out.txt", place / "err.txt"
    child = os.fork()
    if child == 0:
        try:
            sys.stdout, sys.stderr = said.open("w"), complained.open("w")
            small = Bound(seconds=2, memory=1 << 30, asked=4 << 30)
            prompts.PROCESSOR, watch.SPARE, watch.GRACE = small, small, 0.5  # type: ignore[misc]
            main([*words, "--json"])
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 2, (code, complained.read_text(), said.read_text())
    assert "Traceback" not in complained.read_text()
    sentence: str = json.loads(said.read_text().strip().splitlines()[-1])["error"]
    return sentence


def never(sentence: str) -> NoReturn:
    raise AssertionError(sentence)


LOOP = "{% for a in range(99999) %}"
BLOW_UPS = {
    "nested loops": (LOOP * 4 + "{% endfor %}" * 4, "takes more than 1 processor seconds"),
    "a loop over text": (
        "{% for a in 'x' * 99999 %}" * 4 + "{% endfor %}" * 4,
        "takes more than 1 processor seconds",
    ),
    "one long text": ("{{ 'x' * 99999999999 }}", "MemoryError|more memory than it may have"),
    "a text that doubles": (
        "{% set n = namespace(s='x') %}" + "{% set n.s = n.s ~ n.s %}" * 60 + "{{ n.s }}",
        "MemoryError|more memory than it may have|GiB of memory|takes more than 1 processor seconds",
    ),
    "calls that branch": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "takes more than 1 processor seconds",
    ),
}


@pytest.mark.parametrize("kind", BLOW_UPS)
def test_a_chat_template_without_end_is_refused(kind: str, copy: Path, monkeypatch: pytest.MonkeyPatch):
    template, why = BLOW_UPS[kind]
    plant(copy, "chat_template.jinja", template.encode())
    monkeypatch.setattr(prompts, "PROCESSOR", Bound(seconds=1, memory=1 << 30, asked=4 << 30))
    with may_end(never), pytest.raises(UserError, match=why):
        open_package(copy).answer([picture()], "where ?", max_new_tokens=1)


def growing(tokenizer: dict[str, Any]) -> None:
    """A letter that becomes 2⁵⁰."""
    double = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [double] * 50}


def padded(tokenizer: dict[str, Any]) -> None:
    tokenizer["padding"] = {
        "strategy": {"Fixed": 10**12},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }


def backtracking(tokenizer: dict[str, Any]) -> None:
    """A pattern that tries every way to divide a word."""
    split = {
        "type": "Split",
        "pattern": {"Regex": "(e|ee)+$|(e*)*b"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer["pre_tokenizer"] = split


@pytest.mark.parametrize(
    ("change", "why"),
    [(padded, "its padding is 1000000000000 tokens"), (backtracking, r"\(PanicException|processor seconds")],
    ids=["padded", "backtracking"],
)
def test_a_tokenizer_that_asks_for_everything_is_refused(
    change: Callable[[dict[str, Any]], None], why: str, copy: Path
):
    table = json.loads((copy / "tokenizer.json").read_bytes())
    change(table)
    plant(copy, "tokenizer.json", json.dumps(table).encode())
    with pytest.raises(UserError, match=why):
        open_package(copy).answer([picture()], "w" + "e" * 3000 + "!", max_new_tokens=1)


def test_a_tokenizer_that_does_not_return_ends_the_command(copy: Path):
    table = json.loads((copy / "tokenizer.json").read_bytes())
    growing(table)
    plant(copy, "tokenizer.json", json.dumps(table).encode())
    assert re.search(
        "GiB of memory|processor seconds", refused(copy.parent, "run", str(copy), "--prompt", "where")
    )


def test_a_length_is_found_behind_escapes(copy: Path):
    table = json.loads((copy / "tokenizer.json").read_bytes())
    padded(table)
    text = json.dumps(table).replace('"padding"', '"p\\u0061dding"')
    plant(copy, "tokenizer.json", text.encode())
    with pytest.raises(UserError, match="its padding is 1000000000000 tokens"):
        open_package(copy).answer([picture()], "where ?", max_new_tokens=1)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_a_processors_file_larger_than_any_is_not_parsed(
    name: str, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    assert _processor_files.MOST_BYTES[name] >= 1 << 20
    monkeypatch.setitem(_processor_files.MOST_BYTES, name, 10)
    with pytest.raises(UserError, match=rf"{name} is refused, since it has .* bytes and 10 at most"):
        open_package(copy).answer([picture()], "where ?", max_new_tokens=1)


def looping_graph(copy: Path) -> bytes:
    """The embedding graph, behind a loop of 2⁶² rounds."""
    model = onnx.load(copy / "embedding.onnx")
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["seen", "seen"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("seen", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, [1]),
        ],
    )
    model.graph.initializer.extend(
        [
            helper.make_tensor("hostile.rounds", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("hostile.go", TensorProto.BOOL, [], [True]),
            helper.make_tensor("hostile.zero", TensorProto.INT64, [1], [0]),
        ]
    )
    loop = helper.make_node(
        "Loop", ["hostile.rounds", "hostile.go", "hostile.zero"], ["hostile.sum"], body=body
    )
    shifted = helper.make_node("Add", ["input_ids", "hostile.sum"], ["hostile.ids"])
    for node in model.graph.node:
        node.input[:] = ["hostile.ids" if name == "input_ids" else name for name in node.input]
    model.graph.node.insert(0, shifted)
    model.graph.node.insert(0, loop)
    return bytes(model.SerializeToString())


def filling_graph(copy: Path) -> bytes:
    """The embedding graph, behind a tensor of 4 GiB that is all written."""
    model = onnx.load(copy / "embedding.onnx")
    model.graph.initializer.extend(
        [
            helper.make_tensor("hostile.shape", TensorProto.INT64, [2], [1 << 15, 1 << 14]),
            helper.make_tensor("hostile.axes", TensorProto.INT64, [2], [0, 1]),
        ]
    )
    one = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    chain = [
        helper.make_node("ConstantOfShape", ["hostile.shape"], ["hostile.full"], value=one),
        helper.make_node("ReduceSum", ["hostile.full", "hostile.axes"], ["hostile.sum"], keepdims=0),
        helper.make_node("Add", ["input_ids", "hostile.sum"], ["hostile.ids"]),
    ]
    for node in model.graph.node:
        node.input[:] = ["hostile.ids" if name == "input_ids" else name for name in node.input]
    for node in reversed(chain):
        model.graph.node.insert(0, node)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("make", "why"),
    [(looping_graph, "takes more than .* processor seconds"), (filling_graph, "GiB of memory")],
    ids=["looping", "filling"],
)
def test_a_graph_without_end_is_refused(make: Callable[[Path], bytes], why: str, copy: Path):
    plant(copy, "embedding.onnx", make(copy))
    assert re.search(why, refused(copy.parent, "run", str(copy), "--prompt", "where ?"))


def loads(tree: ast.AST) -> list[ast.Call]:
    """Calls of transformers' loaders, which would run a repository's code where they are told to."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("from_pretrained", "from_config")
    ]


def test_no_model_brings_code():
    found = [call for path in SOURCES for call in loads(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(found) >= 5
    for call in found:
        (trusted,) = [k.value for k in call.keywords if k.arg == "trust_remote_code"]
        assert isinstance(trusted, ast.Constant)
        assert trusted.value is False


def test_every_test_that_the_page_of_holes_names_exists():
    page = (Path(__file__).parents[2] / "docs/security.md").read_text(encoding="utf-8")
    named = {word.strip("`,()") for word in page.replace("`", " ").split() if word.startswith("test_")}
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert len(named) >= 12
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []
