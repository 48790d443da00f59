"""What one calibration example is, and a question as one."""

from __future__ import annotations

from dataclasses import dataclass

from scale_export.core.errors import UserError
from scale_export.device.generation import Inputs
from scale_export.device.prompts import conversation, encode_messages
from scale_export.model.asking import target_ids
from scale_export.model.base import BaseModel
from scale_export.questions import load_questions
from scale_export.questions.question import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt as the model takes it, and the tokens that should follow.

    ``at_once`` has those run in one forward, each position with its scalars: the same function as token by token, which
    is what the device does, in a fraction of the time.
    """

    inputs: Inputs
    target: tuple[int, ...]
    at_once: bool = False


def question_examples(base: BaseModel, spec: str, *, limit: int, pictures: bool = True) -> list[Example]:
    """The first questions of a set's calibration split, in order.

    Raises:
        UserError: the set can't be loaded, an answer without tokens, or as ``encode_messages``.
    """
    questions = load_questions(spec, "calibration", limit=limit)
    return [encode_question(base, question, pictures) for question in questions]


def encode_question(base: BaseModel, question: Question, pictures: bool) -> Example:
    """A question as calibration sees it: its prompt as the processor encodes it, and the answer that is to follow."""
    if not (pictures and question.pictures) and not base.family.takes_text_alone:
        raise UserError(
            f"question {question.id!r} has no picture to calibrate on, and model type {base.family.model_type} takes "
            f"no words without one: give it a picture, or leave it out"
        )
    inputs = encode_messages(base.processor, conversation(question, pictures=pictures))
    return Example(inputs=inputs, target=target_ids(base.processor, question, base.rules.end_tokens))
