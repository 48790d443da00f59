"""Coefficient files on disk: twin for twin, whole or not at all, and safe with hostile bytes."""

from __future__ import annotations

import errno
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch.torch_version import TorchVersion

from scale_export.coefficients.file import Coefficients, load_coefficients
from scale_export.coefficients.rules import OPTIONAL, REQUIRED
from scale_export.core.errors import UserError
from tests.helpers.coefficient_files import HASH, SUFFIXES, as_torch, record, same, write

FUZZ = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Coefficients:
    return load_coefficients(write(record(), tmp_path_factory.mktemp("good") / "spatial.pt"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scope": "all", "mlp_site": "post_norm", "bound": {"kind": "none", "r": None}},
        {"base_revision": ..., "prompt_template_sha256": ..., "training": ...},
        {"base_revision": "main", "base_model": "org/größe"},
        {"layer_indices": np.array([0, 2, 10])},
    ],
)
def test_foreign_files_load_and_round_trip(suffix: str, changes: dict[str, Any], tmp_path: Path) -> None:
    fields = record(**changes)
    loaded = load_coefficients(write(fields, tmp_path / f"in{suffix}"))
    assert loaded.scope == fields["scope"]
    assert loaded.layer_indices == (0, 2, 10)
    assert np.array_equal(np.stack(loaded.head_scale), fields["head_scale"])
    assert np.array_equal(loaded.mlp_scale, fields["mlp_scale"])
    for out in SUFFIXES:
        loaded.save(tmp_path / f"out{out}")
        assert same(load_coefficients(tmp_path / f"out{out}"), loaded)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_heads_that_differ_per_layer(good: Coefficients, suffix: str, tmp_path: Path) -> None:
    rows = tuple(np.linspace(0, 1, n, dtype=np.float32) for n in (4, 6, 2))
    varied = replace(good, head_scale=rows)
    varied.save(tmp_path / f"c{suffix}")
    assert same(load_coefficients(tmp_path / f"c{suffix}"), varied)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_is_deterministic_and_leaves_nothing_else(
    good: Coefficients, suffix: str, tmp_path: Path
) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    good.save(first)
    load_coefficients(first).save(second)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_pt_file_is_a_flat_dict_that_torch_reads_safely(good: Coefficients, tmp_path: Path) -> None:
    good.save(tmp_path / "spatial.pt")
    raw = torch.load(tmp_path / "spatial.pt", weights_only=True)
    assert set(raw) == {*REQUIRED, *OPTIONAL}
    assert raw["head_scale"].shape == (3, 4)
    assert raw["head_scale"].dtype == raw["mlp_scale"].dtype == torch.float32


def test_safetensors_twin_needs_no_torch(good: Coefficients, tmp_path: Path) -> None:
    good.save(tmp_path / "spatial.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from scale_export import load_coefficients, UserError\n"
        "c = load_coefficients('spatial.safetensors'); c.save('again.safetensors'); print(c.count)\n"
        "try: load_coefficients('spatial.pt')\n"
        "except UserError as error: print(error)"
    )
    (tmp_path / "spatial.pt").write_bytes(b"")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    count, refusal = done.stdout.splitlines()
    assert count == "15"
    assert "scale-export[onnx]" in refusal
    assert "spatial.safetensors" in refusal
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "spatial.safetensors").read_bytes()


def test_negative_views_are_read_as_their_values(tmp_path: Path) -> None:
    negative = torch.zeros(3, 4, dtype=torch.complex64)
    negative.imag = torch.arange(12.0).reshape(3, 4)
    view = negative.conj().imag
    assert view.is_neg()
    loaded = load_coefficients(write(record() | {"head_scale": view}, tmp_path / "spatial.pt"))
    assert np.array_equal(np.stack(loaded.head_scale), view.resolve_neg().numpy())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_flipped_bit_in_any_scalar_is_refused(good: Coefficients, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{suffix}"
    good.save(path)
    content = path.read_bytes()
    for array in (np.stack(good.head_scale), good.mlp_scale):
        start = content.index(array.tobytes())
        for at in range(start, start + array.nbytes):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(UserError, match="is damaged"):
                load_coefficients(path)


class Malicious:
    """Pickled, it creates the file that it is named after when somebody unpickles it."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.victim),))


@pytest.mark.parametrize(
    "wrap", [lambda m: m, lambda m: as_torch(record(training={"x": m}))], ids=["whole", "inside"]
)
def test_malicious_pickle_is_refused_and_not_executed(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "spatial.pt"
    torch.save(wrap(Malicious(victim)), path)
    with pytest.raises(UserError, match=r"not opened \(it would run posix\.mkdir\)") as refusal:
        load_coefficients(path)
    assert "weights_only" not in str(refusal.value), "torch's advice to open it unsafely is not passed on"
    path.write_bytes(pickle.dumps(wrap(Malicious(victim))))
    with pytest.raises(UserError, match="not opened"):
        load_coefficients(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists(), "the attack itself must work, or this test proves nothing"


class Greedy:
    """Pickles as a request for 4 GiB of zeros, which torch's list of safe names allows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (bytearray, (4 << 30,))


def test_a_pickle_that_asks_for_memory_is_refused_before_it_runs(tmp_path: Path) -> None:
    torch.save({"format": Greedy()}, tmp_path / "spatial.pt")
    assert (tmp_path / "spatial.pt").stat().st_size < 2000
    with pytest.raises(UserError, match=r"it would run .*bytearray"):
        load_coefficients(tmp_path / "spatial.pt")


def test_names_by_the_stack_are_refused(good: Coefficients, tmp_path: Path) -> None:
    torch.save({"x": Greedy()}, tmp_path / "spatial.pt", pickle_protocol=4)
    with pytest.raises(UserError, match="names things in a way"):
        load_coefficients(tmp_path / "spatial.pt")


def test_torch_is_given_what_was_checked_and_nothing_else(
    good: Coefficients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two archives in one file: readers differ in which they see."""
    good.save(tmp_path / "good.pt")
    torch.save({"x": torch.zeros(1000)}, tmp_path / "other.pt")
    path, given = tmp_path / "spatial.pt", []
    path.write_bytes((tmp_path / "other.pt").read_bytes() + (tmp_path / "good.pt").read_bytes())
    real = torch.load

    def load(file: Any, **how: Any) -> Any:
        given.append(file.getvalue())
        return real(file, **how)

    monkeypatch.setattr(torch, "load", load)
    assert same(load_coefficients(path), good)
    assert len(given[0]) < len((tmp_path / "good.pt").read_bytes()) < path.stat().st_size - 4000
    with zipfile.ZipFile(tmp_path / "good.pt") as whole, zipfile.ZipFile(io.BytesIO(given[0])) as checked:
        assert [whole.read(name) for name in whole.namelist()] == [
            checked.read(name) for name in checked.namelist()
        ]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice_is_refused(good: Coefficients, tmp_path: Path) -> None:
    good.save(tmp_path / "spatial.pt")
    with zipfile.ZipFile(tmp_path / "spatial.pt", "a") as archive:
        archive.writestr(archive.namelist()[0], b"x")
    with pytest.raises(UserError, match="a name twice"):
        load_coefficients(tmp_path / "spatial.pt")


def test_compressed_archive_is_refused(good: Coefficients, tmp_path: Path) -> None:
    good.save(tmp_path / "spatial.pt")
    with zipfile.ZipFile(tmp_path / "spatial.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "spatial.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="compressed"):
        load_coefficients(tmp_path / "spatial.pt")


def test_old_torch_is_refused(good: Coefficients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good.save(tmp_path / "spatial.pt")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cpu"))
    with pytest.raises(UserError, match=r"torch 2\.9\.1.*too old.*2\.10.*spatial\.safetensors"):
        load_coefficients(tmp_path / "spatial.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_size_cap(good: Coefficients, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{suffix}"
    good.save(path)
    size = path.stat().st_size
    assert same(load_coefficients(path, max_bytes=size), good)
    with pytest.raises(UserError, match=f"larger than {size - 1} bytes"):
        load_coefficients(path, max_bytes=size - 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\x03\x04", b"\x80\x02}.", b"{}"])
def test_files_of_another_kind(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_coefficients(path)


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_interrupted_save_keeps_the_old_file(
    good: Coefficients, suffix: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / f"c{suffix}"
    good.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(step, full)
    with pytest.raises(UserError, match="No space left on device"):
        replace(good, scope="all").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_read_or_written(good: Coefficients, tmp_path: Path) -> None:
    for bad in (tmp_path / "none.pt", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match=r"cannot read|not named like a coefficient file"):
            load_coefficients(bad)
    (tmp_path / "directory.pt").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        load_coefficients(tmp_path / "directory.pt")
    for bad in (tmp_path / "directory.pt", tmp_path / "missing" / "c.pt", tmp_path / "c.bin"):
        with pytest.raises(UserError, match="cannot write"):
            good.save(bad)
    assert [p.name for p in tmp_path.iterdir()] == ["directory.pt"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "has no field 'format'"),
        ({"scale_coefficients": "{"}, "is damaged"),
        ({"scale_coefficients": "[]"}, "is damaged"),
        ({"scale_coefficients": '{"scope": "all", "scope": "last"}'}, "stands there twice"),
        ({"scale_coefficients": "[" * 100_000}, "is damaged"),
        ({"scale_coefficients": '{"mlp_scale": 1}'}, "both as a tensor and in its metadata"),
        ({"scale_coefficients": f'{{"sha256": "{HASH}"}}'}, "sha256 differs"),
    ],
)
def test_broken_metadata(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    save_file({"mlp_scale": np.ones(3, np.float32)}, tmp_path / "c.safetensors", metadata)
    with pytest.raises(UserError, match=message):
        load_coefficients(tmp_path / "c.safetensors")


def test_missing_rows_of_differing_heads(tmp_path: Path) -> None:
    fields = record(head_scale=...) | {f"head_scale.{i}": np.ones(4, np.float32) for i in (0, 2)}
    with pytest.raises(UserError, match=r"'head_scale\.0' is not a field.*did you mean 'head_scale'"):
        load_coefficients(write(fields, tmp_path / "c.safetensors"))


def load_or_refuse(path: Path) -> Coefficients | None:
    try:
        return load_coefficients(path)
    except UserError as refusal:
        assert "\n" not in str(refusal)
        return None


def damaged(content: bytes, data: st.DataObject) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["set", "insert", "cut", "flip"])):
            case "set":
                changed[at] = data.draw(st.integers(0, 255))
            case "flip":
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "insert":
                changed[at:at] = data.draw(st.binary(max_size=4))
            case "cut":
                del changed[at : at + data.draw(st.integers(1, 8))]
    return bytes(changed)


@pytest.mark.parametrize("suffix", SUFFIXES)
@FUZZ
@given(data=st.data())
def test_damaged_files_are_equal_or_refused(
    good: Coefficients, tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    path = tmp_path / f"c{suffix}"
    good.save(path)
    path.write_bytes(damaged(path.read_bytes(), data))
    loaded = load_or_refuse(path)
    assert loaded is None or same(loaded, good)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["last", "tanh", "output", HASH, 4, [0, 2, 10]])
    | st.builds(
        np.full, st.sampled_from([0, 3, (3, 4), (1, 1, 1)]), st.floats(width=32), st.just(np.float32)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(name=st.sampled_from([*REQUIRED, *OPTIONAL, "other"]), value=VALUES)
def test_arbitrary_values_are_refused_or_survive_both_twins(name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(as_torch(record(**{name: value})), path)
    loaded = load_or_refuse(path)
    if loaded is not None:
        for suffix in SUFFIXES:
            loaded.save(tmp_path / f"again{suffix}")
            assert same(load_coefficients(tmp_path / f"again{suffix}"), loaded)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@FUZZ
@given(data=st.data())
def test_rewritten_pickles_with_right_checksums(
    good: Coefficients, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "c.pt"
    good.save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, damaged(content, data) if name.endswith("data.pkl") else content)
    load_or_refuse(path)
