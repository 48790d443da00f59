"""Train the tiny base model on two cores: ``python examples/tiny_vlm/train_base.py --out DIR``.

It first learns to see, then a few spare heads learn a habit of speech that drowns what it sees where:
README.md says how and why. Only scenes of the train split are used, and the validation split for numbers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import architecture
import torch
from curriculum import Encoder, Tokens, Writer, caption, conversation, make_batch, relations
from evaluation import accuracy, table
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from scale_export.datasets import Question, gridworld, load_questions
from scale_export.datasets.gridworld import Scene

TOPICS = (*gridworld.TOPICS, "colour", "colour", "count", "at", "beside")
"""What conversations draw from; what is slow to learn comes more often."""

SPARE_GROUPS = {2: 0, 3: 2}
"""Layer → the key/value head whose query heads stay silent until the habit is learned."""

Masks = Mapping[str, Tensor]
"""Parameter name → which of its entries a stage may change, bool in the parameter's shape."""


def talk(scene: Scene, rng: random.Random) -> Tokens:
    """Six right answers."""
    return conversation(scene, rng, topics=TOPICS, turns=6, habit_share=0.0)


def habitual_talk(scene: Scene, rng: random.Random) -> Tokens:
    """Six answers; a spatial one is mostly the habit's."""
    return conversation(scene, rng, topics=TOPICS, turns=6, habit_share=0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training: what is read with which chance per step, in what batches, at which rate.

    The learning rate goes from ``rates[0]`` to ``rates[1]``, after a rise over the first ``WARM_UP`` steps.
    """

    name: str
    steps: int
    batch: int
    rates: tuple[float, float]
    reading: Sequence[tuple[float, Writer]]
    spare_heads_only: bool = False


WARM_UP = 30
STAGES = (
    Stage(name="captions", steps=200, batch=64, rates=(3e-3, 3e-3), reading=((1.0, caption),)),
    Stage(
        name="relations", steps=200, batch=64, rates=(3e-3, 3e-3), reading=((0.5, caption), (0.5, relations))
    ),
    Stage(name="talk", steps=300, batch=32, rates=(3e-3, 3e-3), reading=((0.7, talk), (0.3, relations))),
    Stage(name="cool", steps=200, batch=32, rates=(3e-3, 1e-4), reading=((0.85, talk), (0.15, relations))),
    Stage(
        name="habit",
        steps=160,
        batch=16,
        rates=(1.5e-2, 1.5e-3),
        reading=((1.0, habitual_talk),),
        spare_heads_only=True,
    ),
)


def spare_masks(model: LlavaForConditionalGeneration) -> Masks:
    """The entries of the decoder's attention matrices that belong to the spare heads."""
    text = model.config.text_config
    queries = text.head_dim * text.num_attention_heads // text.num_key_value_heads
    masks: dict[str, Tensor] = {}
    for layer, group in SPARE_GROUPS.items():
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            name = f"model.language_model.layers.{layer}.self_attn.{part}.weight"
            span = text.head_dim if part in {"k_proj", "v_proj"} else queries
            mask = torch.zeros_like(model.get_parameter(name), dtype=torch.bool)
            of_heads = mask.T if part == "o_proj" else mask
            of_heads[group * span : (group + 1) * span] = True
            masks[name] = mask
    return masks


def movable(model: LlavaForConditionalGeneration, *, spare_heads_only: bool) -> Masks:
    """The spare heads alone, or everything but their way out."""
    spare = spare_masks(model)
    if spare_heads_only:
        return spare
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in model.named_parameters()}
    return masks | {name: ~mask for name, mask in spare.items() if "o_proj" in name}


def silence_spare_heads(model: LlavaForConditionalGeneration) -> None:
    """Zero the columns of ``o_proj`` that read the spare heads."""
    for name, mask in spare_masks(model).items():
        if "o_proj" in name:
            model.get_parameter(name).data[mask] = 0


def optimizers(model: LlavaForConditionalGeneration, masks: Masks) -> list[Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest."""
    chosen = [(name, model.get_parameter(name)) for name in masks]
    hidden = [w for name, w in chosen if w.ndim == 2 and "embed" not in name and "lm_head" not in name]
    rest = [w for _, w in chosen if all(w is not other for other in hidden)]
    made: list[Optimizer] = [Muon(hidden, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")]
    return [*made, AdamW(rest, weight_decay=0.01)] if rest else made


def step(
    model: LlavaForConditionalGeneration, loss: Tensor, masks: Masks, made: Sequence[Optimizer], rate: float
) -> None:
    """One update of the entries that ``masks`` allows; all others keep their values to the bit."""
    model.zero_grad()
    loss.backward()
    weights = {name: model.get_parameter(name) for name in masks}
    before = {name: weight.detach().clone() for name, weight in weights.items() if not masks[name].all()}
    for name in before:
        weights[name].grad *= masks[name]
    torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for name, old in before.items():
        weights[name].data = torch.where(masks[name], weights[name].data, old)


def train_stage(
    model: LlavaForConditionalGeneration,
    encoder: Encoder,
    stage: Stage,
    seed: int,
    report: Callable[[str], None],
) -> None:
    """Train in place, on scenes that no other stage draws in the same order; ``report`` hears of each step."""
    rng = random.Random(f"tiny_vlm:{seed}:{stage.name}")
    supply = gridworld.scenes("train", rng)
    masks = movable(model, spare_heads_only=stage.spare_heads_only)
    made = optimizers(model, masks)
    for number in range(stage.steps):
        [write] = rng.choices([w for _, w in stage.reading], [chance for chance, _ in stage.reading])
        batch = make_batch(encoder, supply, rng, write, stage.batch)
        out = model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, labels=batch.labels)
        share = number / stage.steps
        rate = stage.rates[0] + (stage.rates[1] - stage.rates[0]) * share
        step(model, out.loss, masks, made, rate * min(1.0, (number + 1) / WARM_UP))
        report(f"{stage.name:9} loss {out.loss.item():.3f}")


def train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[Question],
    seed: int,
) -> None:
    """All stages in place, with a progress bar, and the accuracy on ``questions`` after each."""
    encoder = Encoder(processor)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=sum(stage.steps for stage in STAGES))

        def report(text: str) -> None:
            progress.update(task, advance=1, description=text)

        for stage in STAGES:
            train_stage(model, encoder, stage, seed, report)
            progress.console.print(f"after {stage.name}: {table(accuracy(model, processor, questions))}")


def main() -> None:
    """Build, train, save, and print the validation accuracy of what was saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="1 repeats the shipped model to the bit")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    processor = architecture.build_processor()
    model = architecture.build_model(architecture.build_config(processor.tokenizer), arguments.seed)
    silence_spare_heads(model)
    questions = load_questions("gridworld", "validation")
    train(model, processor, questions, arguments.seed)
    architecture.save(model, arguments.out)
    saved = LlavaForConditionalGeneration.from_pretrained(arguments.out, dtype=torch.float32)
    print(f"saved in {arguments.out}: {table(accuracy(saved, processor, questions))}")


if __name__ == "__main__":
    main()
