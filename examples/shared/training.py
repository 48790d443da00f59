"""The training loop: stages of lessons, spare heads that stay silent until they learn a habit, checkpoints."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from scale_export.questions import load_questions
from scale_export.questions.question import Question
from scale_export.questions.sets._generated import World

from . import chat
from .evaluation import accuracy, table
from .writing import Encoder, Mosaic, Writer, make_batch

Masks = Mapping[str, Tensor]
"""Parameter name → which of its entries a stage may change, bool in the parameter's shape."""

WARM_UP = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training: what is read with which chance per step, in what batches, at which rate.

    ``before`` may change the model first. The learning rate goes from ``rates[0]`` to ``rates[1]``, after a rise over
    the first ``WARM_UP`` steps.
    """

    name: str
    steps: int
    batch: int
    rates: tuple[float, float]
    reading: Sequence[tuple[float, Writer]]
    spare_heads_only: bool = False
    before: Callable[[LlavaForConditionalGeneration], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one example model is made.

    Attributes:
        name: also the name of its folder, and what its random numbers are drawn by.
        spare_groups: layer → the key/value head whose query heads stay silent until the habit is learned.
        logit_scale: what the last norm begins with; less than 1 where the output head is the embedding table.
        bfloat16: whether matrices are multiplied in bfloat16 (automatic mixed precision, eager attention).
        looks: how many questions are asked after each stage.
    """

    name: str
    world: World[Any]
    mosaic: Mosaic
    processor: Callable[[], LlavaProcessor]
    config: Callable[[PreTrainedTokenizerFast], LlavaConfig]
    stages: Sequence[Stage]
    spare_groups: Mapping[int, int]
    logit_scale: float = 1.0
    bfloat16: bool = False
    looks: int = 1024

    def untrained(self, seed: int) -> LlavaForConditionalGeneration:
        """The model before training, its spare heads silent."""
        model = chat.build_model(self.config(self.processor().tokenizer), seed)
        model.model.language_model.norm.weight.data *= self.logit_scale
        if self.bfloat16:
            model.set_attn_implementation("eager")
        silence_spare_heads(model, self.spare_groups)
        return model


def spare_masks(model: LlavaForConditionalGeneration, spare_groups: Mapping[int, int]) -> Masks:
    """The entries of the decoder's attention matrices that belong to the spare heads."""
    text = model.config.text_config
    queries = text.head_dim * text.num_attention_heads // text.num_key_value_heads
    known = dict(model.named_parameters())
    masks: dict[str, Tensor] = {}
    for layer, group in spare_groups.items():
        names = [f"{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj")]
        for end in names + [f"{part}.bias" for part in ("q_proj", "k_proj", "v_proj")]:
            part, name = end.partition(".")[0], f"model.language_model.layers.{layer}.self_attn.{end}"
            if name not in known:
                continue
            span = text.head_dim if part in {"k_proj", "v_proj"} else queries
            mask = torch.zeros_like(model.get_parameter(name), dtype=torch.bool)
            of_heads = mask.T if part == "o_proj" else mask
            of_heads[group * span : (group + 1) * span] = True
            masks[name] = mask
    return masks


def movable(
    model: LlavaForConditionalGeneration, spare_groups: Mapping[int, int], *, spare_heads_only: bool
) -> Masks:
    """The spare heads alone, or everything but their way out."""
    spare = spare_masks(model, spare_groups)
    if spare_heads_only:
        return spare
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in model.named_parameters()}
    return masks | {name: ~mask for name, mask in spare.items() if "o_proj" in name}


def silence_spare_heads(model: LlavaForConditionalGeneration, spare_groups: Mapping[int, int]) -> None:
    """Zero the columns of ``o_proj`` that read the spare heads."""
    for name, mask in spare_masks(model, spare_groups).items():
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
    recipe: Recipe,
    stage: Stage,
    seed: int,
    report: Callable[[str], None],
) -> None:
    """Train in place, on scenes that no other stage draws in the same order; ``report`` hears of each step."""
    rng = random.Random(f"{recipe.name}:{seed}:{stage.name}")
    supply = recipe.world.scenes("train", rng)
    if stage.before:
        stage.before(model)
    masks = movable(model, recipe.spare_groups, spare_heads_only=stage.spare_heads_only)
    made = optimizers(model, masks)
    for number in range(stage.steps):
        [write] = rng.choices([w for _, w in stage.reading], [chance for chance, _ in stage.reading])
        batch = make_batch(encoder, supply, rng, write, stage.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            out = model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, labels=batch.labels)
        share = number / stage.steps
        rate = stage.rates[0] + (stage.rates[1] - stage.rates[0]) * share
        step(model, out.loss, masks, made, rate * min(1.0, (number + 1) / WARM_UP))
        report(f"{stage.name:9} {number + 1:4} loss {out.loss.item():.3f}")


def train(
    recipe: Recipe,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[Question],
    seed: int,
    keep: Path | None,
) -> None:
    """All stages in place, with a progress bar, and the accuracy on ``questions`` after each.

    Weights after each stage are kept in ``keep``, where a later run goes on behind the last one that it finds.
    """
    encoder = Encoder(processor, recipe.mosaic)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=sum(stage.steps for stage in recipe.stages))
        console = progress.console

        def report(text: str) -> None:
            progress.update(task, advance=1, description=text)
            if not console.is_terminal and progress.tasks[0].completed % 50 == 0:
                console.print(text)

        for stage in recipe.stages:
            kept = keep / f"{stage.name}.pt" if keep else None
            if kept and kept.exists():
                model.load_state_dict(torch.load(kept))
                progress.update(task, advance=stage.steps)
                continue
            train_stage(model, encoder, recipe, stage, seed, report)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), kept)
            console.print(
                f"after {stage.name}: {table(accuracy(model, processor, questions[: recipe.looks]))}"
            )


def main(recipe: Recipe, description: str | None) -> None:
    """Build, train, save, and print the validation accuracy of what was saved."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="1 repeats the shipped model to the bit")
    parser.add_argument("--keep", type=Path, help="folder for the weights after each stage, to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    processor = recipe.processor()
    model = recipe.untrained(arguments.seed)
    questions = load_questions(recipe.world.name, "validation")
    train(recipe, model, processor, questions, arguments.seed, arguments.keep)
    chat.save(model, recipe.processor(), arguments.out)
    saved = LlavaForConditionalGeneration.from_pretrained(arguments.out, dtype=torch.float32)
    print(f"saved in {arguments.out}: {table(accuracy(saved, processor, questions))}")
