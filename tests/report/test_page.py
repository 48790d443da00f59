"""The report page: what it says, what it never says, and that it stands alone."""

from __future__ import annotations

import base64
import copy
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from scale_export.charts.accuracy import FrontierPoint
from scale_export.report.legs import LEG_MEANINGS, headline, leg_views
from scale_export.report.numbers import human_bytes
from scale_export.report.page import DifferingQuestion, ReportData, render_report
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
        "differing": (question(),), "differing_total": 1,
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
        "1.3e-6 ≤ 1e-5", "top-1 agreement 98.8 % ≥ 97 %",
        "integer codes unchanged by folding, 8 matrices yes yes", "token ids identical yes yes",
        "gain retention 98.7 % ≥ 95 %", "same answers, near-ties aside 99.9 % ≥ 95 %",
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
    broken = copy.deepcopy(parity()["legs"]["quantization"]) | {"kl": 0.0182, "passed": False}
    html = render_report(data(parity=parity(quantization=broken)))
    text = Page(html).text
    assert "Parity failed The quantization leg is beyond its limits." in text
    assert "Parity passed" not in text
    assert re.findall(r'class="right beyond"[^>]*>([^<]*)<', html) == ["0.0182"]
    moved = copy.deepcopy(parity()["legs"]["quantization"]) | {"codes_identical": False, "passed": False}
    html = render_report(data(parity=parity(quantization=moved)))
    assert re.findall(r'class="right beyond"[^>]*>([^<]*)<', html) == ["no"]


def test_an_error_that_is_not_finite_is_no_missing_one():
    broken = parity()["legs"]["fold"] | {"value": None, "passed": False}
    views = leg_views(parity(fold=broken))
    assert (views[0].verdict, views[0].metrics[0].value, views[0].metrics[0].beyond) == ("failed", "∞", True)
    assert "The fold leg is beyond its limits." in render_report(data(parity=parity(fold=broken)))


@pytest.mark.parametrize("name", LEG_MEANINGS)
def test_a_leg_that_did_not_run_is_named_as_such(name):
    found = parity(**{name: None}, not_checked=[f"{name}: the runtime <b>was</b> missing"])
    html = render_report(data(parity=found))
    text = Page(html).text
    assert f"5 legs are within their limits. Not checked: {name}." in text
    assert f"{name} not checked the runtime <b>was</b> missing not checked" in text
    assert f"{name}: the runtime <b>was</b> missing" in text
    assert Page(html).wrong == []
    view = next(view for view in leg_views(found) if view.name == name)
    assert [(metric.value, metric.error.value) for metric in view.metrics] == [("not checked", None)]


def test_nothing_ran():
    nothing = parity(
        **dict.fromkeys(LEG_MEANINGS), passed=False, not_checked=["fold", "task: no set was named"]
    )
    html = render_report(data(parity=nothing, differing=(), differing_total=0, sizes=()))
    text = Page(html).text
    assert "Parity failed" in text
    assert "Not checked: fold, lowering, quantization, runtime, preprocessing, task." in text
    assert "no reason was recorded" in text
    assert "Answers were not checked." in text
    assert "Not checked: no questions were asked." in text
    assert "No differences" not in text
    assert not re.search(r"\b0 %|\b0\.0", text)
    assert Page(html).wrong == []


def test_answer_agreement_stands_in_for_accuracy():
    agreement = {"cases": 24, "agreement": 1.0, "agreement_outside_near_ties": None, "near_ties": 24}
    found = parity(task=None, answer_agreement=agreement, not_checked=["task: no set was named"])
    text = Page(render_report(data(parity=found, differing=(), differing_total=0))).text
    assert "On 24 prompts of the self-test the export answered as PyTorch ScAle did in 100 %" in text
    assert "near-ties aside (24 of them), in not measured." in text
    assert "No differences: the export answered every question as PyTorch ScAle did." in text


def test_missing_numbers_of_the_task_leg_are_words():
    missing = {
        "gain_retention": None,
        "gain_retention_95": None,
        "mcnemar_p": None,
        "difference_95": [None, None],
    }
    task = parity()["legs"]["task"] | missing
    task["accuracy"] = {who: kinds | {"other": None} for who, kinds in task["accuracy"].items()}
    text = Page(render_report(data(parity=parity(task=task)))).text
    assert "Gain retention not measured" in text
    assert "McNemar's exact p not measured" in text
    assert "Accuracy lost by the export 0.20 points McNemar" in text
    assert "gain retention not checked ≥ 95 %" in text
    assert "other 83.1 %" not in text


def test_a_leg_without_a_limit_is_reported():
    free = parity()["legs"]["runtime"] | {"limits": {"kl": None, "top1_agreement": None}, "passed": None}
    text = Page(render_report(data(parity=parity(runtime=free)))).text
    assert "runtime no limit 24 cases mean KL, nats 0.0011 no limit top-1 agreement 98.8 % no limit" in text
    assert "5 legs are within their limits." in text


def test_legs_of_distributions_say_how_many_positions_they_count():
    counted = parity()["legs"]["quantization"] | {"steps": 1033}
    text = Page(render_report(data(parity=parity(quantization=counted)))).text
    assert "quantization passed 24 cases, 1,033 answer positions mean KL, nats" in text
    assert text.count("answer positions") == 1


def test_a_later_leg_is_shown_too():
    found = parity()
    found["legs"]["device"] = {
        "metric": "max |Δlogit|",
        "value": 0.5,
        "limit": 1.0,
        "cases": 3,
        "passed": True,
    }
    text = Page(render_report(data(parity=found))).text
    assert "device passed 3 cases max |Δlogit| 0.5 ≤ 1" in text


def test_gallery_shows_pictures_and_marks_true_answers():
    shown = (question(), question(image_png=None, near_tie=True, export=""))
    html = render_report(data(differing=shown, differing_total=21))
    images = [attributes["src"] for tag, attributes in Page(html).elements if tag == "img"]
    assert [base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in images] == [picture()]
    text = Page(html).text
    assert "differ on 21 questions; here are the first 2." in text
    assert "no picture" in text
    assert "near-tie of the reference" in text
    assert "Export (empty)" in text
    assert re.findall(r'class="right-answer">([^<]*)<', html) == ["Left ", "Left "]
    assert "No differences" not in text
    assert "differ on 1 question." in Page(render_report(data())).text


def differing_answer(number: int) -> dict:
    return {
        "id": f"q{number}", "prompt": HOSTILE, "truth": "left", "base": "right", "scale": "left",
        "export": "" if number == 2 else HOSTILE, "right": {}, "near_tie": number == 3,
    }  # fmt: skip


def test_answers_beyond_the_gallery_are_listed():
    task = parity()["legs"]["task"]
    task["differences"] = {"count": 130, "listed": [differing_answer(i) for i in range(4)]}
    html = render_report(data(parity=parity(task=task), differing=(question(),) * 2, differing_total=130))
    page = Page(html)
    assert page.wrong == [] and not [tag for tag, _ in page.elements if tag == "script"]
    assert "q1" not in page.text and "q2 left left (empty) no" in page.text
    assert f"q3 left left {HOSTILE} yes" in page.text


def test_the_loss_is_shown_by_step_with_its_whole():
    parts = {
        "fold": {"kl": 2.5e-14, "top1_changed": 0.0},
        "quantization": {"kl": -0.00619, "top1_changed": 0.125},
    }
    whole = {"kl": None, "top1_changed": 0.125}
    found = parity() | {"attribution": {"parts": parts, "whole": whole, "passed": True}}
    page = Page(render_report(data(parity=found)))
    assert page.wrong == []
    assert "fold 2.5e-14 0 % quantization −0.00619 12.5 % whole not measured 12.5 %" in page.text
    assert "Where the loss comes from" not in Page(render_report(data())).text


def test_equivalence_is_a_fact_and_with_a_margin_a_limit():
    tests = {"margin": None, "all": {"within": 0.0081}, "spatial": {"within": 0.0143}}
    free = parity()["legs"]["task"] | {"equivalence": tests, "scoring": "official", "unscored": 135}
    text = Page(render_report(data(parity=parity(task=free)))).text
    assert "Shown equally accurate within, spatial ± 1.43 points" in text
    assert "Scoring official, 135 questions without a rule" in text
    held = copy.deepcopy(free) | {"passed": False}
    held["limits"]["equivalence_margin"] = 0.01
    html = render_report(data(parity=parity(task=held)))
    assert "shown equally accurate within, all 0.0081 ≤ 0.01" in Page(html).text
    assert re.findall(r'class="right beyond"[^>]*>([^<]*)<', html) == ["0.0143"]


def test_hostile_text_stays_text():
    found = parity(task=None, not_checked=[f"task: {HOSTILE}"])
    found["legs"]["fold"] |= {"metric": HOSTILE}
    hostile = data(
        name=HOSTILE, facts={HOSTILE: HOSTILE}, decisions=(HOSTILE,), parity=found, scope=HOSTILE,
        sizes=((HOSTILE, 1),), costs=((HOSTILE, HOSTILE),), versions={HOSTILE: HOSTILE}, differing_total=1,
        differing=(question(prompt=HOSTILE, truth=HOSTILE, base=HOSTILE, scale=HOSTILE, export=HOSTILE),),
    )  # fmt: skip
    html = render_report(hostile)
    page = Page(html)
    assert page.wrong == []
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert [attributes for _, attributes in page.elements if "onerror" in attributes] == []
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 1
    assert page.text.count(HOSTILE) >= 12
    assert "49" not in page.text


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
    found = parity(runtime=parity()["legs"]["runtime"] | {"top1_agreement": share})
    assert leg_views(found)[3].metrics[1].value == text


def test_headline_counts_and_names():
    both = {name: parity()["legs"][name] | {"passed": False} for name in ("fold", "task")}
    found = parity(**both)
    assert headline(found, leg_views(found)) == "The fold and task legs are beyond their limits."
    found = parity(**dict.fromkeys(list(LEG_MEANINGS)[1:]))
    assert headline(found, leg_views(found)).startswith("1 leg is within its limits. Not checked: lowering, ")


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
