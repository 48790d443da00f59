"""A device's result: of this package or refused, and failed where the device strayed, whatever else it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.device.certificate import device_leg, read_result
from scale_export.device.package import open_package
from tests.helpers.cli import last_json, run

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def saved(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this machine's self-test saves, by the command."""
    file = tmp_path_factory.mktemp("results") / "result.json"
    assert run("verify", str(package), "--selftest", "--save", str(file)) == 0
    return file


@pytest.fixture
def told(saved: Path, package: Path, tmp_path: Path) -> Callable[[Edit], Any]:
    """The leg of the saved result after a change."""

    def leg(edit: Edit) -> Any:
        table = json.loads(saved.read_text(encoding="utf-8"))
        edit(table)
        file = tmp_path / "edited.json"
        file.write_text(json.dumps(table), encoding="utf-8")
        opened = open_package(package)
        return device_leg(opened.files, opened, read_result(file))

    return leg


def test_the_command_saves_a_result_and_certifies_it(
    saved: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = tmp_path / "certificate.json"
    asked = ("verify", str(package), "--selftest", "--device-result", str(saved), "--json")
    assert run(*asked, "--certificate", str(certificate), "--require", "device.error<=1e-5") == 0
    found = last_json(capsys)
    assert found["device"]["passed"] and found["device"]["value"] <= 1e-5
    assert found["device"]["speed"]["decode_tokens_per_second"] > 0
    report = json.loads(certificate.read_text(encoding="utf-8"))
    assert report["legs"]["device"] == found["device"] and report["legs"]["fold"]["passed"]
    assert run(*asked, "--require", "device.decode>=1e9") == 1
    assert run(*asked[:-3], "--require", "device.error<=1") == 1, "what was not measured fulfils nothing"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t["package"].update(manifest_sha256="0" * 64), "of another package"),
        (lambda t: t.update(hashes_checked=False), "did not check the package's hashes"),
        (lambda t: t["cases"].pop(), "the whole self-test"),
        (lambda t: t["cases"].append(t["cases"][0]), "the whole self-test"),
        (lambda t: t["cases"][4].update(strength=1.0), "the whole self-test"),
        (lambda t: t.update(schema=2), "'schema'"),
        (lambda t: t.update(kind="other"), "'kind'"),
        (lambda t: t["host"].pop("device"), "host.device"),
        (lambda t: t["cases"][0].update(error="small"), "error"),
    ],
    ids=["package", "hashes", "missing", "twice", "strength", "schema", "kind", "host", "number"],
)
def test_a_result_that_proves_nothing_of_the_package_is_refused(
    told: Callable[[Edit], Any], edit: Edit, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        told(edit)


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t["cases"][1].update(error=2e-4),
        lambda t: t["cases"][1].update(error=None),
        lambda t: t["cases"][2].update(ids_identical=False),
        lambda t: t["cases"][0].update(pixel_levels=1.5),
        lambda t: t["cases"][4].update(gate_response=0.0),
        lambda t: t["cases"][5].update(gate_response=2.0),
        lambda t: t["cases"][5].update(gate_response=None),
    ],
    ids=["error", "no number", "ids", "pixels", "gate ignored", "gate too strong", "gate not told"],
)
def test_a_device_that_strays_fails(told: Callable[[Edit], Any], edit: Edit) -> None:
    assert told(lambda table: None).passed
    assert not told(edit).passed


def test_answers_are_held_to_the_packages_own(told: Callable[[Edit], Any]) -> None:
    right, asked = told(lambda table: None).answers
    assert asked == 4
    other = told(lambda t: t["cases"][0].update(answer="elsewhere", answer_expected="elsewhere"))
    assert other.passed and other.answers == (right - 1, asked)


def test_nothing_is_written_into_the_package_or_without_a_result(
    saved: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("verify", str(package), "--selftest")
    inside = str(package / "certificate.json")
    assert run(*asked, "--device-result", str(saved), "--certificate", inside) == 2
    assert "inside the package" in capsys.readouterr().err
    assert run(*asked, "--certificate", str(tmp_path / "none.json")) == 2
    assert not list(tmp_path.iterdir()) and not (package / "certificate.json").exists()
