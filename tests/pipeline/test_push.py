"""Packages travel by the hub: pushed, pulled and run, byte for byte, against a stand-in of the hub's API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

from scale_export import UserError, open_package
from scale_export.package.hub import package_directory
from tests.helpers.cli import last_json, run
from tests.helpers.hub import TOKEN, Hub, Repository, files_in, running_hub
from tests.helpers.packages import plant, reseal
from tests.helpers.pictures import picture

REPO = "me/spatial-cpu"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, and huggingface_hub in this process turned to it, with a cache of its own and a writer's token."""
    with running_hub() as found:
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": found.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield found


def pushed(package: Path, *more: str) -> int:
    return run("push", str(package), REPO, *more)


@pytest.mark.slow
def test_pushed_pulled_and_run_by_commands_alone(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything by the words that a user types, with nothing but the hub's own environment variables set."""
    picture().save(tmp_path / "scene.png")
    with running_hub() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
        }

        def command(*words: str) -> Any:
            done = subprocess.run(
                [sys.executable, "-m", "scale_export", *words, "--json"],
                env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        done = command("push", str(package), REPO, "--tag", "v1")
        assert done["repo"] == REPO and done["url"].endswith(REPO)
        assert {n: b for n, b in hub.newest.items() if n not in (".gitattributes", "README.md")} == files_in(
            package
        )
        ask = ("--prompt", "hello", "--max-new-tokens", "4", "--threads", "1")
        assert run("run", str(package), *ask, "--image", str(tmp_path / "scene.png"), "--json") == 0
        assert command("run", f"{REPO}@v1", *ask, "--image", "scene.png") == last_json(capsys)
        assert command("verify", REPO, "--selftest")["passed"] is True


def test_a_pulled_package_is_the_same_to_the_byte(hub: Hub, package: Path) -> None:
    assert pushed(package) == 0
    pulled = open_package(REPO, threads=1)
    assert files_in(pulled.files.directory) == files_in(package)
    expected = open_package(package, threads=1).logits([picture()], "hello")
    np.testing.assert_array_equal(pulled.logits([picture()], "hello"), expected)


def test_a_cached_package_opens_offline_and_an_unknown_one_says_why_not(
    hub: Hub, package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(package) == 0 and open_package(REPO)
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert files_in(open_package(REPO).files.directory) == files_in(package)
    assert run("run", "me/other", "--prompt", "hello") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "me/other is not in this machine's hub cache, and the hub cannot be reached" in said
    assert len(hub.asked) == asked


def test_a_hub_that_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's tries
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(UserError, match="the hub cannot be reached"):
        open_package(REPO)


def test_a_revision_names_a_state(hub: Hub, package: Path, tmp_path: Path) -> None:
    assert pushed(package, "--tag", "v1") == 0
    other = shutil.copytree(package, tmp_path / "other")
    reseal(other, lambda table: table.update(name="other"))
    assert pushed(other) == 0
    assert open_package(REPO).files.manifest.name == "other"
    assert open_package(f"{REPO}@v1").files.manifest.name == package.name
    with pytest.raises(UserError, match=r"has no revision 'v2' on the hub"):
        open_package(f"{REPO}@v2")


def test_what_a_former_package_held_goes_and_a_written_page_stays(
    hub: Hub, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = shutil.copytree(package, tmp_path / "larger")
    plant(larger, "extra.txt", b"more")
    assert pushed(larger) == 0 and "extra.txt" in hub.newest
    hub.newest["README.md"] = b"# My own page\n"
    hub.newest["LICENSE"] = b"mine"
    capsys.readouterr()
    assert pushed(package, "--json") == 0
    done = last_json(capsys)
    assert done["removed"] == ["extra.txt"] and "extra.txt" not in hub.newest
    assert (
        done["card_kept"]
        and hub.newest["README.md"] == b"# My own page\n"
        and hub.newest["LICENSE"] == b"mine"
    )
    assert open_package(REPO)


@pytest.mark.parametrize("page", [b"---\nlicense: mit\n---\n", b"\n"])
def test_a_page_without_words_gives_way_to_the_card(hub: Hub, package: Path, page: bytes) -> None:
    hub.repositories[REPO] = Repository(states=[{"README.md": page}])
    assert pushed(package) == 0
    assert b"## Accuracy" in hub.newest["README.md"]
    assert pushed(package) == 0  # and a card to the next one


def test_a_repository_that_holds_other_things_is_refused_untouched(
    hub: Hub, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"model.safetensors": b"weights", "a.bin": b"", "b.bin": b"", "c.bin": b""}
    hub.repositories[REPO] = Repository(states=[dict(weights)])
    assert pushed(package) == 2
    assert "holds other files (a.bin, b.bin, c.bin and 1 more)" in capsys.readouterr().err
    assert hub.newest == weights


def test_a_damaged_package_is_not_pushed(
    hub: Hub, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(package, tmp_path / "broken")
    (broken / "decoder.onnx").write_bytes(b"other")
    assert pushed(broken) == 2 and "decoder.onnx" in capsys.readouterr().err
    assert not hub.asked


@pytest.mark.parametrize("token", ["hf_nobody", ""])
def test_one_who_may_not_write_is_told_how(
    hub: Hub, package: Path, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert pushed(package) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "hf auth login" in said[-1] and "HF_TOKEN" in said[-1] and not hub.repositories


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        (None, "the hub has no package me/spatial-cpu that you may see: .* `hf auth login`"),
        (Repository(private=True), "the hub has no package me/spatial-cpu that you may see"),
        (Repository(gated=True), "is gated on the hub"),
        (
            Repository(states=[{"model.safetensors": b"x" * 5000}]),
            "holds no manifest.json, so it is no package",
        ),
        (Repository(states=[{"manifest.json": b"{}"}]), "manifest.json is refused"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(
    hub: Hub, repository: Repository | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if repository:
        hub.repositories[REPO] = repository
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(UserError, match=words):
        open_package(REPO)
    assert not any("safetensors" in asked for asked in hub.asked)


@pytest.mark.parametrize("name", ["manifest.json", "decoder.onnx.data"])
def test_what_is_larger_than_the_manifest_says_is_not_fetched(hub: Hub, package: Path, name: str) -> None:
    assert pushed(package) == 0
    hub.newest[name] += bytes(5 << 20)
    hub.asked.clear()
    with pytest.raises(UserError, match=f"{name} of .* bytes, and"):
        open_package(REPO)
    assert not any(asked.endswith(name) and asked.startswith("GET") for asked in hub.asked)


def test_a_changed_file_on_the_hub_is_found(hub: Hub, package: Path) -> None:
    assert pushed(package) == 0
    hub.newest["config.json"] = hub.newest["config.json"].replace(b"llava", b"llavo")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        open_package(REPO)


@pytest.mark.parametrize(
    "place",
    [
        "./me/spatial-cpu",
        "/me/spatial-cpu",
        "~/spatial-cpu",
        "me/spatial/cpu",
        "spatial-cpu",
        "here/spatial-cpu",
        "me\\x/y",
    ],
)
def test_what_looks_like_a_path_is_never_sent(
    hub: Hub, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("here").mkdir()
    for words in (("run", place, "--prompt", "hello"), ("verify", place, "--selftest"), ("inspect", place)):
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert "does not exist" in said or "there is no file or package" in said
    assert not hub.asked


def test_a_local_package_wins_over_a_hub_id(hub: Hub, package: Path) -> None:
    shutil.copytree(package, Path(REPO))
    assert open_package(REPO).files.directory == Path(REPO)
    assert package_directory(Path("you/other")) == Path("you/other") and not hub.asked
    with pytest.raises(UserError, match="the hub has no package me/other"):
        open_package("hf://me/other")
    with pytest.raises(UserError, match="is no hub id"):
        open_package("hf://me")


def test_the_card_says_what_the_report_says(hub: Hub, package: Path) -> None:
    hub.repositories["team/base"] = Repository(licence="apache-2.0")
    assert pushed(package, "--base-model", "team/base") == 0
    (page,) = (r.states[-1]["README.md"].decode() for name, r in hub.repositories.items() if name == REPO)
    front = yaml.safe_load(page.split("---\n")[1])
    assert front["base_model"] == "team/base" and front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "image-text-to-text" and front["library_name"] == "scale-export"
    assert {"onnx", "float32", "cpu", "scale-export"} <= set(front["tags"])
    parity = json.loads((package / "parity.json").read_text(encoding="utf-8"))
    assert f"{parity['legs']['fold']['value']:.2g}" in page and "| lowering |" in page
    assert "how often this package is right was not measured" in page
    assert all(f"- {sentence}" in page for sentence in parity["not_checked"]) and parity["not_checked"]
    assert f"scale-export run {REPO} --image" in page and "scale-export[ort]" in page


def test_a_base_without_a_known_licence_is_said_to_have_none(
    hub: Hub, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(package) == 0
    assert "--license" in capsys.readouterr().out
    front = yaml.safe_load(hub.newest["README.md"].decode().split("---\n")[1])
    assert "license" not in front and "base_model" not in front
    assert b"is not known" in hub.newest["README.md"]
    assert pushed(package, "--license", "mit") == 0
    assert yaml.safe_load(hub.newest["README.md"].decode().split("---\n")[1])["license"] == "mit"
