"""The PyTorch ScAle model's own trajectories: what every parity leg compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from scale_export.coefficients.file import Coefficients
from scale_export.core.defaults import QUESTION_SET
from scale_export.core.huggingface import Model, Processor
from scale_export.core.limits import NEAR_TIE_MARGIN
from scale_export.core.records import Float32
from scale_export.device.generation import Inputs
from scale_export.device.prompts import encode_messages, user_message
from scale_export.device.rules import GenerationRules
from scale_export.model.hooks import attach
from scale_export.questions import is_generated, load_questions
from scale_export.questions.question import Question

NO_RULES = GenerationRules()
"""The best token, always."""

FORCED_STEPS = 4
"""Decode steps of a case. They go on past an end token, since exactness holds on any path of logits; what an answer
is made of ends there (``Case.answer_positions``)."""

PROMPTS = 12
"""Questions among the parity prompts, beside those of an odd shape."""

ANSWER_POSITIONS = 70
"""At how many positions of answers distributions are compared, at the least: what fourteen whole paths have."""

MOST_PROMPTS = 48
"""Questions that are asked for that, at the most."""

ROUNDS = (32, 64, 128, 256)
"""Questions of each further round, while those before leave a verdict open (``distributions``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Pictures and words of one parity case."""

    name: str
    images: tuple[Image.Image, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One prompt with the reference's greedy path.

    Attributes:
        inputs: the base processor's output.
        tokens: the reference's greedy tokens, fed to every leg alike.
        logits: float32 ``[len(tokens) + 1, V]``, after the prompt and after each token.
        rules: by which the answer's tokens are chosen.
    """

    prompt: Prompt
    inputs: Inputs
    tokens: tuple[int, ...]
    logits: Float32
    rules: GenerationRules = NO_RULES

    @property
    def answer_positions(self) -> int:
        """How many positions, from the first, belong to the answer: the last of them predicts its end token.

        All of them where none does.
        """
        return len(self.answer)

    def cut(self) -> Case:
        """The case without what comes behind its answer."""
        positions = self.answer_positions
        return replace(self, tokens=self.tokens[: positions - 1], logits=self.logits[:positions])

    @property
    def hangs_on_near_tie(self) -> bool:
        """Whether some position's two best logits are too close for every machine to choose alike."""
        best = np.sort(self.logits, axis=-1)[:, -2:]
        margins = best[:, 1] - best[:, 0]
        return bool((margins < NEAR_TIE_MARGIN * np.abs(self.logits).max(-1)).any())

    @property
    def answer(self) -> tuple[int, ...]:
        """The reference's tokens up to its end token, or as far as the case goes."""
        prompt = self.inputs["input_ids"][0].tolist() if self.rules.acting else ()
        chosen: list[int] = []
        for position, row in enumerate(self.logits):
            chosen.append(self.rules.choose(row, prompt, self.tokens[:position]))
            if chosen[-1] in self.rules.end_tokens:
                break
        return tuple(chosen)


def parity_questions(coefficients: Coefficients) -> str:
    """The set that parity prompts come from: what the scalars were trained on, if it is generated, or the grid world.

    Ranges of activations and calibrated codes hold for what a model knows, and prompts should be of that; where the set
    lies on somebody's disk, others could not verify the package with it.
    """
    trained_on = str(coefficients.training.get("data", ""))
    return trained_on if is_generated(trained_on) else QUESTION_SET


def parity_prompts(
    count: int = PROMPTS, *, text_alone: bool = True, questions: str = QUESTION_SET
) -> list[Prompt]:
    """Prompts of a set's calibration split, one of them on a picture that is not square, one without picture.

    The last is left out where the family's processor takes no ``text_alone``.
    """
    chosen = load_questions(questions, "calibration", limit=count)
    prompts = [_prompt(question) for question in chosen]
    first = chosen[0]
    if first.image is not None:
        wide = first.image.crop((0, 0, first.image.width, first.image.height * 2 // 3))
        prompts.append(Prompt(name="wide picture", images=(wide,), text=first.prompt))
    if text_alone:
        prompts.append(Prompt(name="no picture", images=(), text=first.prompt))
    return prompts


def parity_cases(
    model: Model,
    processor: Processor,
    coefficients: Coefficients,
    *,
    rules: GenerationRules,
    text_alone: bool = True,
) -> list[Case]:
    """The cases of a loaded model: the parity prompts, and more questions of their set.

    More are asked where answers are short, and where all are the same: equal answers of an export prove nothing then.
    """
    questions = parity_questions(coefficients)
    prompts = parity_prompts(text_alone=text_alone, questions=questions)
    cases = reference_cases(model, processor, coefficients, prompts, rules=rules)
    more = load_questions(questions, "calibration", limit=MOST_PROMPTS)[PROMPTS:]
    missing = ANSWER_POSITIONS - sum(case.answer_positions for case in cases)
    for question in more:
        if missing <= 0 and len({case.answer for case in cases}) > 1:
            break
        cases += reference_cases(model, processor, coefficients, [_prompt(question)], rules=rules)
        missing -= cases[-1].answer_positions
    return cases


def more_cases(
    model: Model, processor: Processor, coefficients: Coefficients, number: int, rules: GenerationRules
) -> list[Case]:
    """Round ``number`` of further questions, from 0: of the validation split, which nothing was calibrated on.

    The paths end with the answers.
    """
    first = sum(ROUNDS[:number])
    questions = load_questions(parity_questions(coefficients), "validation", limit=first + ROUNDS[number])[
        first:
    ]
    prompts = [_prompt(question) for question in questions]
    return [case.cut() for case in reference_cases(model, processor, coefficients, prompts, rules=rules)]


def few_prompts(*, text_alone: bool = True, questions: str = QUESTION_SET) -> list[Prompt]:
    """The first and the last of them, with and without a picture: for models that are streamed from disk."""
    prompts = parity_prompts(1, text_alone=text_alone, questions=questions)
    return [prompts[0], prompts[-1]]


def _prompt(question: Question) -> Prompt:
    images = () if question.image is None else (question.image,)
    return Prompt(name=question.id, images=images, text=question.prompt)


def reference_cases(
    model: Model,
    processor: Processor,
    coefficients: Coefficients,
    prompts: Sequence[Prompt],
    steps: int = FORCED_STEPS,
    rules: GenerationRules = NO_RULES,
) -> list[Case]:
    """Run the hooked Hugging Face model on each prompt: one prefill, then ``steps`` decode steps.

    Without end tokens every position counts as one of an answer.
    """
    cases = []
    with attach(model, coefficients):
        for prompt in prompts:
            inputs = encode_messages(processor, [user_message(prompt.images, prompt.text)])
            tokens, logits = _path(model, inputs, steps, rules=rules)
            cases.append(Case(prompt=prompt, inputs=inputs, tokens=tokens, logits=logits, rules=rules))
    return cases


def model_logits(model: Model, cases: Sequence[Case]) -> list[Float32]:
    """A Hugging Face model's logits along every case's path, each ``[len(tokens) + 1, V]``."""
    return [_path(model, case.inputs, len(case.tokens), forced=case.tokens)[1] for case in cases]


def forget_positions(model: Model) -> None:
    """Make a Hugging Face model forget how far the last prompt's pictures put its positions behind its tokens.

    Those of Qwen keep it from one prompt with pictures to the next, and one without would be decoded by it.
    """
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None  # type: ignore[assignment]  # a plain attribute, of which torch says nothing


@torch.no_grad()
def _path(
    model: Model,
    inputs: Inputs,
    steps: int,
    forced: Sequence[int] | None = None,
    rules: GenerationRules = NO_RULES,
) -> tuple[tuple[int, ...], Float32]:
    """The tokens fed after the prompt (the model's own greedy ones by the ``rules``, or ``forced``), and all logits."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
    prompt = inputs["input_ids"][0].tolist()
    forget_positions(model)
    output = model(**tensors, use_cache=True)
    rows, tokens = [output.logits[0, -1].numpy()], list[int]()
    for step in range(steps):
        tokens.append(rules.choose(rows[-1], prompt, tokens) if forced is None else forced[step])
        # Without a mask, which Qwen's would take for that many new positions.
        output = model(
            input_ids=torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True
        )
        rows.append(output.logits[0, -1].numpy())
    return tuple(tokens), np.stack(rows)
