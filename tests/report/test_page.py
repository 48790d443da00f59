"""The report page: what it says, what it never says, and that it stands alone."""

from __future__ import annotations

import base64
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scale_export.charts.accuracy import FrontierPoint
from scale_export.core.intervals import Equivalence
from scale_export.core.records import NotChecked
from scale_export.proof.attribution import Attribution, Loss
from scale_export.proof.legs import FoldLeg, StorageLeg
from scale_export.proof.numbers import human_bytes, percent
from scale_export.proof.report import LEGS, MEANINGS, ParityReport
from scale_export.proof.stored_tensors import TensorsLeg
from scale_export.report.legs import headline, leg_views
from scale_export.report.page import DifferingQuestion, ReportData, render_report
from tests.helpers import parity as made
from tests.helpers.parity import parity

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
HOSTILE = "</h3><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} \"'&lt;"


class Page(HTMLParser):
    """A page taken apart: its text, its elements, and whatever is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        self.wrong += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> in {self.open[-3:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (6, 4), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def question(**changes) -> DifferingQuestion:
    fields = {
        "prompt": "is the star left or right of the moon?", "image_png": picture(), "truth": "left",
        "base": "right", "scale": "Left ", "export": "right", "near_tie": False,
    }  # fmt: skip
    return DifferingQuestion(**{**fields, **changes})


def data(**changes) -> ReportData:
    attn = np.array([[1.0, 1.57], [0.44, 1.2]], np.float32)
    fields = {
        "name": "spatial-cpu-int8", "facts": {"Base model": "tiny_vlm", "Fold mode": "gate"},
        "decisions": ("Scalars stay as a gate inside the graph: weights would act on every token.",),
        "parity": parity(), "scope": "last",
        "attn_scale": attn, "mlp_scale": np.array([1.0, 0.9], np.float32),
        "sizes": (("decoder.onnx", 48_213), ("decoder.onnx.data", 1_034_880)),
        "costs": (("KV cache per token of context", "4,096 bytes"),),
        "differing": (),
        "versions": {"scale-export": "0.1.0", "numpy": "2.3.5"},
    }  # fmt: skip
    return ReportData(**{**fields, **changes})


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(data())


def test_page_is_whole_balanced_and_the_same_each_time(html):
    page = Page(html)
    assert page.wrong == []
    assert html.startswith("<!DOCTYPE html>")
    assert html.endswith("</html>\n")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert html == render_report(data())


def test_page_asks_for_nothing_and_runs_nothing(html):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    for tag, attributes in Page(html).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    policy = next(
        a["content"] for t, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_page_says_what_was_measured(html):
    text = Page(html).text
    for said in (
        "Parity passed 6 legs are within their limits.", "spatial-cpu-int8", "Base model tiny_vlm",
        "Fold mode gate", "weights would act on every token", "42.1 → 72.9 %",
        "1.3e-6 ≤ 1e-5", "top-1 agreement at 710 decided positions 98.8 % (90 %: 97.8 … 99.8) ≥ 97 %",
        "top-1 agreement 98.8 % (90 %: 97.8 … 99.8) no limit",
        "integer codes unchanged by folding, 8 matrices yes yes", "token ids identical yes yes",
        "gain retention 98.7 % ≥ 95 %", "same answers, 1,400 that PyTorch ScAle was decided about 99.95 % ≥ 95 %",
        "share of near-ties 0.0137 ≤ 0.02", "98.7 % (95 %: 95.7 … 101.7)",
        "0.20 points (95 %: −0.25 … 0.71)", "McNemar's exact p 0.549", "21 of 1,536",
        "spatial 42.1 % 38.6 … 45.6", "decoder.onnx.data 1.03 MB 95.5 %", "Together 1.08 MB", "4,096 bytes",
        "farthest from 1: layer 0 head 1 (s = 1.57), layer 1 head 0 (s = 0.44), layer 1 head 1 (s = 1.20).",
        "2 scalars amplify and 2 damp", "It acts on the last token only", "Every leg ran.", "numpy 2.3.5",
    ):  # fmt: skip
        assert said in text, said
    assert "not checked" not in text
    assert "not measured" not in text


def test_charts_are_drawn_in_the_page(html):
    page = Page(html)
    assert [tag for tag, _ in page.elements].count("svg") == 3
    for words in (
        "error as a share of its limit, log scale",
        "decoder layer",
        "768 questions",
        "currentColor",
    ):
        assert words in html
    assert "xmlns" not in html


def test_a_failed_leg_is_in_the_headline_and_its_number_stands_out():
    html = render_report(data(parity=parity(quantization=made.quantization(0.0182))))
    text = Page(html).text
    assert "Parity failed The quantization leg is beyond its limits." in text
    assert "Parity passed" not in text
    assert beyond(html) == ["0.0182 (90 %: 0.0182 … 0.0182)"]
    html = render_report(data(parity=parity(quantization=made.quantization(moved=True))))
    assert beyond(html) == ["no"]


def test_too_few_positions_are_no_pass_and_the_headline_says_why():
    few = made.quantization(positions=30, top1_interval=(0.91, 1.0))
    found = parity(quantization=few)
    text = Page(render_report(data(parity=found))).text
    assert "Parity failed The quantization leg was measured on too few positions for its limits." in text
    assert "quantization undecided 24 cases, 30 answer positions" in text
    assert (
        not found.passed and found.failed == ["quantization"] and found.verdict("quantization") == "undecided"
    )
    assert "30 positions, 30 of them decided, are too few" in str(few.to_json()["undecided"])


def beyond(html: str) -> list[str]:
    """The values that the page shows as beyond their limits."""
    return re.findall(r'class="right beyond"[^>]*>([^<]*)<', html)


@pytest.mark.parametrize(("value", "shown"), [(math.inf, "∞"), (math.nan, "NaN")])
def test_an_error_that_is_not_finite_is_no_missing_one(value: float, shown: str):
    """Whatever the leg: it fails, its number is on the page, and the JSON has null."""
    for leg in (
        made.fold(value),
        made.lowering(value),
        made.quantization(value),
        made.runtime(value),
        made.preprocessing(value),
    ):
        found = parity(**{leg.name: leg})
        view = next(view for view in leg_views(found) if view.name == leg.name)
        assert (view.verdict, view.rows[0].value, view.rows[0].beyond) == ("failed", shown, True)
        assert None in found.to_json()["legs"][leg.name].values() and not found.passed
    assert "The fold leg is beyond its limits." in render_report(data(parity=parity(fold=made.fold(value))))


@pytest.mark.parametrize("name", LEGS)
def test_a_leg_that_did_not_run_is_named_as_such(name):
    skipped = [NotChecked(name, "the runtime <b>was</b> missing: a file")]
    found = parity(**{name: None}, not_checked=skipped)
    text = Page(html := render_report(data(parity=found))).text
    assert f"5 legs are within their limits. Not checked: {name}." in text
    assert f"{name} not checked the runtime <b>was</b> missing: a file not checked" in text
    assert f"{name}: the runtime <b>was</b> missing: a file" in text
    assert Page(html).wrong == [] and "Every leg ran." not in text
    view = next(view for view in leg_views(found) if view.name == name)
    assert view.rows == () and [error.value for error in view.errors()] == [None]


def test_nothing_ran():
    nothing = parity(**dict.fromkeys(LEGS), not_checked=[NotChecked("task", "no set was named")])
    html = render_report(data(parity=nothing, sizes=()))
    text = Page(html).text
    assert "Parity failed" in text
    assert "Not checked: fold, lowering, quantization, runtime, preprocessing, task." in text
    assert "fold: no reason was recorded" in text and "task: no set was named" in text
    assert "Answers were not checked." in text
    assert "Not checked: no questions were asked." in text
    assert "No differences" not in text and "Every leg ran." not in text
    assert not re.search(r"\b0 %|\b0\.0", text)
    assert Page(html).wrong == []


def test_answer_agreement_stands_in_for_accuracy():
    found = parity(task=None, answer_agreement=made.answers(outside_near_ties=None, near_ties=24))
    text = Page(render_report(data(parity=found))).text
    assert "On 24 parity prompts the export answered as PyTorch ScAle did in 100 %" in text
    assert "near-ties aside (24 of them), in not measured." in text


SAME = "No differences: the export answered every question as PyTorch ScAle did."
SAME_PROMPTS = "No differences on the 24 parity prompts; no other questions were asked."
OTHER_PROMPTS = "differ on 2 questions of the 24 parity prompts; no others were asked."
UNASKED = "Not checked: no questions were asked."


DIFFERING: Any = {"share": 0.9, "differing": 2, "listed": tuple(made.difference(i) for i in range(2))}
"""Two answers that differ, both of them near-ties."""


@pytest.mark.parametrize(
    ("task", "prompts", "other"),
    [
        *itertools.product(
            ("passed", "failed", "differ", "absent"), ("same", "differ", "absent"), ("passed",)
        ),
        ("passed", "same", "failed"),
        ("absent", "same", "failed"),
        ("absent", "same", "absent"),
    ],
)
def test_what_is_said_of_answers_was_measured_by_the_leg_that_says_it(task: str, prompts: str, other: str):
    """Every sentence on answers follows from the answers that were given, whatever other legs found."""
    bad = made.agreement(1536, share=0.5, outside_near_ties=0.5, where_decided=0.5)
    found = parity(
        task={
            "passed": made.task(),
            "failed": made.task(bad),
            "differ": made.task(made.agreement(1536, **DIFFERING)),
            "absent": None,
        }[task],
        answer_agreement={"same": made.answers(), "differ": made.answers(24, **DIFFERING), "absent": None}[
            prompts
        ],
        runtime={"passed": made.runtime(), "failed": made.runtime(0.5), "absent": None}[other],
    )
    page = Page(render_report(data(parity=found, differing=(question(),) if task == "differ" else ())))
    assert page.wrong == []
    asked = {"absent": {"same": SAME_PROMPTS, "differ": OTHER_PROMPTS, "absent": UNASKED}[prompts]}
    expected = asked.get(task, "differ on 2 questions; here are the first 1." if task == "differ" else SAME)
    known = {SAME, SAME_PROMPTS, OTHER_PROMPTS, UNASKED, "differ on 2 questions; here are the first 1."}
    assert {sentence for sentence in known if sentence in page.text} == {expected}
    assert ("Of the 24 parity prompts, 2 have another answer." in page.text) == (
        task != "absent" and prompts == "differ"
    )
    assert ("Accuracy was not checked." in page.text) == (task == "absent" and prompts != "absent")
    assert ("Answers were not checked." in page.text) == (task == prompts == "absent")
    assert ("Spatial accuracy" in page.text) == ("Gain retention" in page.text) == (task != "absent")
    assert ("q1" in page.text) == (task == "differ" or (task == "absent" and prompts == "differ"))
    failed = [name for name, state in (("runtime", other), ("task", task)) if state == "failed"]
    assert ("Parity failed" in page.text) == bool(failed)


def test_every_combination_of_legs_is_told_apart():
    """Ran, failed or absent: the headline names each leg under what happened to it."""
    states = {
        "fold": (made.fold(), made.fold(1.0), None),
        "lowering": (made.lowering(), made.lowering(1.0), None),
        "quantization": (made.quantization(), made.quantization(moved=True), None),
        "runtime": (made.runtime(), made.runtime(top1_agreement=0.5), None),
        "preprocessing": (made.preprocessing(), made.preprocessing(ids_identical=False), None),
        "task": (made.task(), made.task(retention=made.estimate(0.1, None, None)), None),
    }
    for chosen in itertools.product(range(3), repeat=len(states)):
        legs = {name: states[name][state] for name, state in zip(states, chosen, strict=True)}
        found = parity(**legs)
        views = leg_views(found)
        named = {state: [n for n, c in zip(states, chosen, strict=True) if c == state] for state in range(3)}
        assert found.failed == named[1] == [v.name for v in views if any(row.beyond for row in v.rows)]
        assert found.passed == (not named[1] and bool(named[0]))
        said, _, left_out = headline(found.passed, views).partition(" Not checked: ")
        assert left_out == (f"{', '.join(named[2])}." if named[2] else "")
        if named[1]:
            assert said.startswith(f"The {' and '.join(named[1])} leg")
        else:
            assert said.startswith(str(len(named[0])) if named[0] else "No leg is beyond its limit")


def test_missing_numbers_of_the_task_leg_are_words():
    nothing_other = {who: replace(accuracy, other=None) for who, accuracy in made.task().accuracy.items()}
    task = made.task(
        retention=None, mcnemar_p=None, difference=made.estimate(0.002, None, None), **nothing_other
    )
    text = Page(render_report(data(parity=parity(task=task)))).text
    assert "Gain retention not measured" in text
    assert "McNemar's exact p not measured" in text
    assert "Accuracy lost by the export 0.20 points McNemar" in text
    assert "gain retention not checked ≥ 95 %" in text
    assert "other 83.1 %" not in text


def test_a_leg_without_a_limit_is_reported():
    found = parity(runtime=made.runtime(max_kl=None, min_top1=None))
    text = Page(render_report(data(parity=found))).text
    assert (
        "runtime no limit 24 cases, 710 answer positions mean KL, nats 0.0011 (90 %: 0.0011 … 0.0011) no limit "
        "top-1 agreement at 710 decided positions 98.8 % (90 %: 97.8 … 99.8) no limit" in text
    )
    assert "5 legs are within their limits." in text


def test_legs_of_distributions_say_how_many_positions_they_count():
    text = Page(render_report(data(parity=parity(quantization=made.quantization(positions=1033))))).text
    assert "quantization passed 24 cases, 1,033 answer positions mean KL, nats" in text
    assert text.count("answer positions mean KL") == 2


def test_the_legs_of_a_checkpoint_are_shown_too():
    tensors = TensorsLeg(
        error=made.error(1.0, 1.0001, "half units"),
        cases=8,
        beyond=(),
        layout_identical=True,
        untouched=74,
        changed=("a", "b"),
    )
    storage = StorageLeg(error=made.error(8e-4, 1.5e-3), cases=24, dtypes=("F16",))
    found = parity(tensors=tensors, storage=storage)
    assert tuple(found.legs) == tuple(MEANINGS)
    html = render_report(data(parity=found))
    assert "storage passed 24 cases" in Page(html).text
    assert "SHA-256 unchanged, 74 tensors that no scalar touches no yes" in Page(html).text
    assert beyond(html) == ["no"] and found.failed == ["tensors"]


def told_apart(count: int, listed: int, **changes: Any) -> ParityReport:
    """A report whose task leg has ``count`` differing answers, the first of them listed."""
    answers = tuple(made.difference(i, **changes) for i in range(listed))
    agreed = made.agreement(1536, share=0.98, outside_near_ties=0.98, differing=count, listed=answers)
    return parity(task=made.task(agreed))


def test_gallery_shows_pictures_and_marks_true_answers():
    shown = (question(), question(image_png=None, near_tie=True, export=""))
    html = render_report(data(differing=shown, parity=told_apart(21, 2)))
    images = [attributes["src"] for tag, attributes in Page(html).elements if tag == "img"]
    assert [base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in images] == [picture()]
    text = Page(html).text
    assert "differ on 21 questions; here are the first 2." in text
    assert "no picture" in text
    assert "near-tie of the reference" in text
    assert "Export (empty)" in text
    assert re.findall(r'class="right-answer">([^<]*)<', html) == ["Left ", "Left "]
    assert "No differences" not in text
    one = render_report(data(differing=(question(),), parity=told_apart(1, 1)))
    assert "differ on 1 question." in Page(one).text


def test_answers_beyond_the_gallery_are_listed():
    task = told_apart(130, 4, prompt=HOSTILE, export=HOSTILE).task
    agreed = task.agreement
    listed = (*agreed.listed[:2], made.difference(2, export=""), replace(agreed.listed[3], near_tie=True))
    found = parity(task=replace(task, agreement=replace(agreed, listed=listed)))
    html = render_report(data(parity=found, differing=(question(),) * 2))
    page = Page(html)
    assert page.wrong == [] and not [tag for tag, _ in page.elements if tag == "script"]
    assert "q1" not in page.text and "q2 left left (empty) no" in page.text
    assert f"q3 left left {HOSTILE} yes" in page.text


def test_the_loss_is_shown_by_step_with_its_whole():
    parts = {
        "fold": Loss(kl=2.5e-14, top1_changed=0.0),
        "quantization": Loss(kl=-0.00619, top1_changed=0.125),
    }
    whole = Loss(kl=None, top1_changed=0.125)
    lost = Attribution(whole=whole, parts=parts, cases=24, positions=71)
    page = Page(render_report(data(parity=parity(attribution=lost))))
    assert page.wrong == []
    assert "fold 2.5e-14 0 % quantization −0.00619 12.5 % whole not measured 12.5 %" in page.text
    assert "Where the loss comes from" not in Page(render_report(data())).text


def test_equivalence_is_a_fact_and_with_a_margin_a_limit():
    tests = {
        "equivalent": Equivalence(low=-0.001, high=0.0081, within=0.0081, p=0.01, shown=True),
        "equivalent_spatial": Equivalence(low=-0.001, high=0.0143, within=0.0143, p=0.2, shown=False),
    }
    text = Page(
        render_report(data(parity=parity(task=made.task(scoring="official", unscored=135, **tests))))
    ).text
    assert "Shown equally accurate within, spatial ± 1.43 points" in text
    assert "Scoring official, 135 questions without a rule" in text
    limits = made.LIMITS.model_copy(update={"equivalence_margin": 0.01})
    found = parity(task=made.task(limits=limits, **tests))
    html = render_report(data(parity=found))
    assert "shown equally accurate within, all 0.0081 ≤ 0.01" in Page(html).text
    assert beyond(html) == ["0.0143"] and found.failed == ["task"]


def test_hostile_text_stays_text():
    found = parity(
        task=None,
        not_checked=[NotChecked("task", HOSTILE)],
        fold=FoldLeg(error=made.error(1e-6, 1e-5, HOSTILE), cases=1),
        answer_agreement=made.answers(differing=1, listed=(made.difference(0, id=HOSTILE, truth=HOSTILE),)),
    )
    hostile = data(
        name=HOSTILE, facts={HOSTILE: HOSTILE}, decisions=(HOSTILE,), parity=found, scope=HOSTILE,
        sizes=((HOSTILE, 1),), costs=((HOSTILE, HOSTILE),), versions={HOSTILE: HOSTILE},
    )  # fmt: skip
    asked = question(prompt=HOSTILE, truth=HOSTILE, base=HOSTILE, scale=HOSTILE, export=HOSTILE)
    shown = replace(hostile, parity=replace(found, task=told_apart(1, 1).task), differing=(asked,))
    for html, images in ((render_report(hostile), 0), (render_report(shown), 1)):
        page = Page(html)
        assert page.wrong == []
        assert not [tag for tag, _ in page.elements if tag == "script"]
        assert [attributes for _, attributes in page.elements if "onerror" in attributes] == []
        assert len([tag for tag, _ in page.elements if tag == "img"]) == images
        assert page.text.count(HOSTILE) >= 12
        assert "> 49 " not in page.text  # no text is taken as a template


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_499, "999 kB"),
        (999_500, "1.00 MB"), (4_560_000_000, "4.56 GB"), (7_500_000_000_000_000, "7500 TB"),
    ],
)  # fmt: skip
def test_bytes_are_readable(size, text):
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.99997, "99.997 %"),
        (0.00002, "0.002 %"),
        (0.65, "65.0 %"),
        (1.017, "101.7 %"),
    ],
)
def test_a_percentage_never_reads_100_or_0_untruly(share, text):
    assert percent(share) == text


def test_headline_counts_and_names():
    def said(found: ParityReport) -> str:
        return headline(found.passed, leg_views(found))

    both = parity(fold=made.fold(1.0), task=made.task(unscored=1, retention=made.estimate(0.1, None, None)))
    assert said(both) == "The fold and task legs are beyond their limits."
    assert said(parity(**dict.fromkeys(LEGS[1:]))).startswith(
        "1 leg is within its limits. Not checked: lowering, "
    )
    assert said(parity(attribution=made.attribution(1.0))).startswith(
        "No leg is beyond its limit, but the checks"
    )


def test_scalars_that_change_nothing_are_said_to():
    ones = replace(
        data(), attn_scale=np.ones((2, 2), np.float32), mlp_scale=np.ones(2, np.float32), scope="all"
    )
    text = Page(render_report(ones)).text
    assert "Every scalar is 1: the export is the base model." in text
    assert "It acts on every token." in text


def test_a_search_under_a_budget_shows_its_frontier():
    points = [
        FrontierPoint(
            size=900_000 - i,
            kl=0.001,
            accuracy=0.9,
            chosen=i == 1,
            uniform="8 bits everywhere" if i == 0 else None,
        )
        for i in range(3)
    ]
    page = render_report(
        data(frontier=tuple(points), frontier_reference=0.92, frontier_words=("Said of <it>.",))
    )
    assert "Bits under the budget" in page and page.count("← chosen") == 1
    assert page.count("8 bits everywhere") == 1 and "Said of &lt;it&gt;." in page
    assert "Bits under the budget" not in render_report(data())
