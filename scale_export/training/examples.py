"""Questions as token tensors, and batches of whole sequences.

Shapes: B batch, T padded length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from scale_export.core.huggingface import Model, Processor
from scale_export.families import prompt_sees_itself
from scale_export.model.asking import encode_prompts, rules_of_model, target_ids, to_model
from scale_export.questions.question import Question

from .options import ProgressCallback

IGNORED = -100
"""The target of a position whose prediction is not trained."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One question, ready for the model.

    Attributes:
        prompt: the processor's inputs for this question alone, batch dimension 1.
        target: the answer's tokens and an end token.
        answer_type: what ``token_type_ids`` hold at an answer's tokens, where the family has them.
    """

    question: Question
    prompt: Mapping[str, Tensor]
    target: tuple[int, ...]
    answer_type: int = 0

    @property
    def prompt_ids(self) -> Tensor:
        """``[T]`` int64."""
        return self.prompt["input_ids"][0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Model inputs with what they should predict.

    Attributes:
        targets: int64 ``[B, T]``, ``IGNORED`` where nothing is predicted.
        gate: float32 ``[B, T]``, 1 at the last prompt token and at every answer token.
    """

    inputs: Mapping[str, object]
    targets: Tensor
    gate: Tensor


def encode_examples(
    model: Model, processor: Processor, questions: Sequence[Question], progress: ProgressCallback, stage: str
) -> list[Example]:
    """Every question through the processor, in order.

    Raises:
        UserError: an answer without a token, or as ``encode_prompts``.
    """
    ends = rules_of_model(model, processor).end_tokens
    answer_type = int(prompt_sees_itself(model.config.model_type))  # which marks prompts by 0, answers by 1
    examples = []
    for done, question in enumerate(questions, 1):
        prompt = to_model(encode_prompts(processor, [question]), model)
        target = target_ids(processor, question, ends)
        examples.append(Example(question=question, prompt=prompt, target=target, answer_type=answer_type))
        progress(stage, done, len(questions))
    return examples


def prefix_inputs(examples: Sequence[Example]) -> dict[str, Tensor]:
    """The prompts but their last tokens in one left-padded batch, ``[B, longest prompt - 1]``."""
    sequences, inputs = _sorted_inputs(examples)
    width = max(len(e.prompt_ids) for e in examples)
    for name, parts in sequences.items():
        inputs[name] = torch.cat([pad(part[:, :-1], (width - part.shape[1], 0)) for part in parts])
    return inputs


def _sorted_inputs(examples: Sequence[Example]) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """The inputs that hold one value per token, one by one, and the others (pictures) joined."""
    sequences: dict[str, list[Tensor]] = {}
    joined: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for example in examples for name in example.prompt):
        owners = [example for example in examples if name in example.prompt]
        parts = [example.prompt[name] for example in owners]
        if all(part.shape == e.prompt["input_ids"].shape for part, e in zip(parts, owners, strict=True)):
            sequences[name] = parts
        else:
            joined[name] = _stack_padded(parts)
    return sequences, joined


def whole_sequences(examples: Sequence[Example], pad_id: int) -> Batch:
    """Prompt and answer of each example in one right-padded batch (the last end token is only predicted)."""
    device = examples[0].prompt_ids.device
    lengths = [len(e.prompt_ids) + len(e.target) - 1 for e in examples]
    targets = torch.full((len(examples), max(lengths)), IGNORED, device=device)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        targets[row, len(example.prompt_ids) - 1 : length] = torch.tensor(example.target, device=device)
    sequences, inputs = _sorted_inputs(examples)
    for name, parts in sequences.items():
        fill = pad_id if name == "input_ids" else 0
        grown = [_with_answer(name, part, e) for part, e in zip(parts, examples, strict=True)]
        inputs[name] = torch.cat([pad(p, (0, max(lengths) - p.shape[1]), value=fill) for p in grown])
    return Batch(inputs=inputs, targets=targets, gate=(targets != IGNORED).float())


def _with_answer(name: str, values: Tensor, example: Example) -> Tensor:
    """A sequence of the prompt, ``[1, T]``, lengthened over the answer's tokens but the last."""
    answer = torch.tensor([example.target[:-1]], device=values.device, dtype=values.dtype)
    if name == "attention_mask":
        answer = torch.ones_like(answer)
    elif name != "input_ids":
        answer = torch.full_like(answer, example.answer_type if name == "token_type_ids" else 0)
    return torch.cat([values, answer], dim=1)


def _stack_padded(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along dimension 0, the other dimensions filled up with zeros to the largest."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return torch.cat([_grown(part, sizes) for part in parts])


def _grown(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """Zeros after the end of every dimension but the first, up to ``sizes``."""
    missing = [size - n for size, n in zip(sizes, part.shape[1:], strict=True)]
    return pad(part, [width for count in reversed(missing) for width in (0, count)])
