"""Budgets of decoding speed, on machines that are made up: no test depends on how fast this one is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from scale_export import UserError
from scale_export.backends.coreai.backend import BACKEND as coreai
from scale_export.backends.coreml import backend as coreml_backend
from scale_export.backends.onnxruntime.backend import BACKEND as onnx
from scale_export.core.progress import WorkLog
from scale_export.pipeline.fold import plan_fold, within_budget
from scale_export.pipeline.request import FoldRequest
from scale_export.plan.record import Plan
from scale_export.plan.weights import plan_statistics
from scale_export.quantize import read_bits_plan
from scale_export.quantize.calibration import StoredStatistics
from scale_export.report.data import beside_uniform
from scale_export.search.budget import BitsChoice, Point
from scale_export.search.speed import TRIES, SpeedModel, choose_speed
from scale_export.search.timing import seconds_per_token
from tests.helpers.plans import plan_of

QUIET = WorkLog(quiet=True)
SIZES = [1000 - 50 * narrow for narrow in range(11)]


class Machine:
    """Seconds per token by narrow matrices; remembers what it was asked."""

    def __init__(self, seconds: Any) -> None:
        self.seconds, self.asked = seconds, list[int]()

    def __call__(self, narrow: int) -> float:
        self.asked.append(narrow)
        return float(self.seconds(narrow))


def test_two_points_give_the_model():
    model = SpeedModel.through((1000, 0.012), (500, 0.007))
    assert model.bandwidth == pytest.approx(1e5) and model.fixed == pytest.approx(0.002)
    assert model.seconds(750) == pytest.approx(0.0095)


def test_a_machine_as_the_model_has_it_is_asked_once_more():
    machine = Machine(lambda narrow: 0.002 + SIZES[narrow] / 1e5)
    found = choose_speed(100, SIZES, machine)  # 10 ms: 800 bytes, 4 narrow
    assert machine.asked == [0, 10, 4] and found.chosen.narrow == 4
    assert found.chosen.predicted == pytest.approx(found.chosen.measured)
    assert (
        sum("<- chosen" in line for line in found.lines()) == 1
        and "100 tokens/s predicted" in found.lines()[2]
    )


def test_a_machine_slower_than_predicted_is_narrowed_further():
    machine = Machine(lambda narrow: 0.012 - 0.005 * (narrow / 10) ** 2)
    found = choose_speed(100, SIZES, machine)
    assert machine.asked[:3] == [0, 10, 4] and machine.asked[3] > 4
    assert found.chosen.measured >= 100 and found.chosen.narrow == machine.asked[-1]
    assert found.chosen.predicted is not None and len(machine.asked) <= 2 + TRIES


def test_after_the_last_try_everything_is_narrow():
    machine = Machine(lambda narrow: 0.007 if narrow == 10 else 0.012)
    found = choose_speed(100, SIZES, machine)
    assert found.chosen.narrow == 10 and found.chosen.measured == pytest.approx(1 / 0.007)
    assert len(machine.asked) <= 2 + TRIES


def test_a_machine_that_is_fast_enough_stays_wide():
    machine = Machine(lambda narrow: 0.001)
    found = choose_speed(100, SIZES, machine)
    assert machine.asked == [0] and found.chosen.narrow == 0 and found.model is None


@pytest.mark.parametrize(
    ("narrow", "words"), [(0.011, "90.91 tokens/s, with 4"), (0.013, "83.33 tokens/s, with 8")]
)
def test_a_speed_that_nothing_reaches_is_refused_with_the_fastest(narrow: float, words: str):
    with pytest.raises(
        UserError, match=f"no choice of bits meets --budget decode=100tok/s.*{words} bits everywhere"
    ):
        choose_speed(100, SIZES, lambda n: narrow if n else 0.012)


def test_a_search_records_what_was_predicted_and_measured(base_of: Any, tmp_path: Path):
    plan = plan_of(base_of("llava", "llama"))
    timed: list[Plan] = []

    def timer(timed_plan: Plan, statistics: StoredStatistics | None) -> float:
        timed.append(timed_plan)
        wide = sum(bits == 8 for name, bits in timed_plan.other_bits.items() if name != "embedding")
        return 0.005 + 0.001 * wide

    bounded, choice = within_budget(plan, plan_statistics(plan, QUIET), "decode=60tok/s", QUIET, timer)
    assert choice is not None and choice.speed is not None
    assert choice.speed.chosen.measured >= 60 > choice.speed.timed[0].measured
    assert choice.chosen.narrow == choice.speed.chosen.narrow and choice.bits["embedding"] == 8
    assert sum(bits == 4 for bits in choice.bits.values()) == choice.chosen.narrow
    assert {p.other_bits.get("embedding") for p in timed} == {8}
    assert timed[-1].other_bits == bounded.other_bits
    assert "measured to decode" in bounded.decisions[-1] and "predicted" in bounded.decisions[-1]
    choice.write(tmp_path / "bits.toml")
    assert read_bits_plan(tmp_path / "bits.toml") == dict(choice.bits)
    comments = [
        line for line in (tmp_path / "bits.toml").read_text().splitlines() if line.startswith("# decode")
    ]
    assert any("predicted" in line and "measured <- chosen" in line for line in comments)
    assert "the model" in comments[-1]


def asked(base_of: Any, coefficient_file: Path, out: Path, target: str, **more: Any) -> FoldRequest:
    options = {"precision": "int4", "quantizer": "rtn", "calib": "gridworld", "calib_limit": 3, **more}
    model = str(base_of("llava", "llama").directory)
    return FoldRequest(
        coeffs=coefficient_file, target=target, out=out, model=model, budget="decode=30tok/s", **options
    )


def test_only_a_runtime_of_this_machine_is_timed(
    base_of: Any, coefficient_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    request = asked(base_of, coefficient_file, tmp_path / "package", "coreml")
    monkeypatch.setattr(coreml_backend, "on_device", lambda: False)
    with pytest.raises(
        UserError, match=r"measures speed on this machine, and Core ML packages run in an interpreter"
    ):
        plan_fold(request)
    monkeypatch.setattr(coreml_backend, "on_device", lambda: True)
    plan = plan_fold(request)
    assert "results alone" in (coreai.not_timed(plan.target) or "")
    here = plan_fold(dataclasses.replace(request, target="cpu"))
    assert onnx.not_timed(here.target) is None
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OtherProvider"])
    assert "no CPUExecutionProvider" in (onnx.not_timed(here.target) or "")


def test_a_budget_and_a_plan_of_bits_are_not_both_asked(base_of: Any, coefficient_file: Path, tmp_path: Path):
    with pytest.raises(UserError, match="leave out --bits-plan"):
        plan_fold(asked(base_of, coefficient_file, tmp_path / "package", "cpu", bits="k_quant_mixed"))


def test_the_page_sets_the_choice_beside_uniform_bits():
    points = [Point(narrow=n, size=1000 - 100 * n, kl=0.001 * n, accuracy=0.9) for n in (0, 2, 4)]
    choice = BitsChoice(
        bits={},
        sensitivity=dict.fromkeys(["a", "b", "c", "embedding"], 0.1),
        frontier=points,
        chosen=points[1],
        reference_accuracy=0.9,
    )
    larger, smaller = beside_uniform(choice)
    assert larger.startswith("8 bits everywhere, the next larger uniform size, takes 25% more")
    assert smaller.startswith("4 bits everywhere") and "25% less, with KL 0.004 for 0.002" in smaller
    assert beside_uniform(dataclasses.replace(choice, chosen=points[2])) == (
        "The choice is uniform: 4 bits everywhere.",
    )
    without = dataclasses.replace(choice, sensitivity=dict.fromkeys("abcd", 0.1))
    assert beside_uniform(without)[1].startswith("4 bits everywhere but in the embedding, the next smaller")


@pytest.mark.slow
def test_a_real_decoder_is_timed(base_of: Any):
    assert 0 < seconds_per_token(plan_of(base_of("llava", "llama"), quantizer="rtn"), None) < 10
