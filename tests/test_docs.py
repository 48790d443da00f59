"""The documents keep up with the code: every command, option, leg, target and link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from scale_export.cli.app import app
from scale_export.plan.targets import target_names
from scale_export.proof.report import LEGS
from tests.architecture import FLOORS
from tests.helpers.pages import PAGES

ROOT = Path(__file__).parents[1]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def section(name: str) -> str:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/commands.md has no section {name}"
    return found.group(1)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name: str):
    text = section(name)
    assert f"scale-export {name}" in text
    shared = {"--json", "--help"}
    for parameter in COMMANDS[name].params:
        options = {o for o in parameter.opts if o.startswith("--")} - shared
        assert all(option in text for option in options), f"{name} {options}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_page_is_reached_from_the_readme():
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        left += [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert reached == {page.resolve() for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_a_section_lead_to_one(page: Path):
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / file if file else page).read_text(encoding="utf-8")
        heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_project_speaks_of_itself_alone(page: Path):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(
        r"/root/|/work/|/home/|file://|localhost|\bpypi\b|\bissue #?\d+|\bTODO\b", text, re.IGNORECASE
    )


def test_contributing_names_every_room_on_its_floor():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d*) ?\| (`[^|]+) \|", text, re.MULTILINE)
    floors: list[set[str]] = []
    for number, rooms in rows:
        if number:
            floors.append(set())
        floors[-1] |= set(re.findall(r"`(\w+)`", rooms))
    assert floors == [set(rooms) for rooms in FLOORS]


def test_every_leg_and_target_is_named():
    parity = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    assert all(f"| {leg} |" in parity for leg in LEGS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = readme + "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/*.md"))
    assert all(f"`{name}`" in pages or f"--target {name}" in pages for name in target_names())


def test_the_readme_runs_the_make_targets_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in set(re.findall(r"\bmake (\w+)", readme)) - {"the"}:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
