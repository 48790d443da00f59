"""What a package's own files must not be able to do."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

import scale_export
from scale_export import UserError, open_package
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
