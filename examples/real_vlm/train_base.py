"""Teach a pretrained language model to see: ``python examples/real_vlm/train_base.py --language-model DIR --out FILE``.

Three parts are trained and written, in 16 bits: a vision tower, a projector, and a low-rank change (LoRA) of the
language model. ``assemble.py`` puts them and the language model together. Only scenes of the train split are used, and
the validation split for numbers.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from architecture import IMAGE, IMAGE_TOKENS, TURN, build_model, build_processor
from curriculum import Turn, talk
from peft import LoraConfig, inject_adapter_in_model
from rich.progress import Progress, TimeElapsedColumn
from safetensors.torch import save_file
from shared.evaluation import table
from shared.writing import IGNORED, Batch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from scale_export.questions import load_questions
from scale_export.questions.question import Question
from scale_export.questions.sets import gridworld

RANK = 8
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALIGN_STEPS, ALIGN_BATCH, ALIGN_RATE = 400, 32, 2e-3
RATE, BETAS, WARM_UP = 1e-3, (0.9, 0.98), 30
SCENES, TURNS = 8, 3
LOOK_EVERY = 100


class Encoder:
    """Turns scenes and what is said about them into batches, padded on the right."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.processor = processor

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

    def _sequence(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for number, (asked, answer) in enumerate(turns):
            picture = IMAGE * IMAGE_TOKENS if number == 0 else ""
            given = self._ids(TURN.format(role="user", text=picture + asked) + "<|im_start|>assistant\n")
            learned = self._ids(f"{answer}<|im_end|>")
            after = self._ids("\n")
            ids += given + learned + after
            labels += [IGNORED] * len(given) + learned + [IGNORED] * len(after)
        return ids, labels

    def batch(self, pictures: Sequence[object], talks: Sequence[Sequence[Turn]]) -> Batch:
        """One picture and one talk a row."""
        rows = [self._sequence(turns) for turns in talks]
        length, pad = max(len(ids) for ids, _ in rows), self.processor.tokenizer.pad_token_id
        pixels = self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        return Batch(
            pixels,
            torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows]),
        )


def answer_logits(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits ``[N, V]`` before each learned token, and those tokens ``[N]``."""
    hidden = model.model(
        input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False
    ).last_hidden_state[:, :-1]
    wanted = batch.labels[:, 1:]
    return model.lm_head(hidden[wanted != IGNORED]), wanted[wanted != IGNORED]


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration, encoder: Encoder, questions: Sequence[Question]
) -> dict[str, float]:
    """The share of answers that greedy decoding gives to the word, end included: per kind, then per topic."""
    scores: dict[str, list[bool]] = {"spatial": [], "other": []}
    for start in range(0, len(questions), 32):
        asked = questions[start : start + 32]
        batch = encoder.batch([q.image for q in asked], [[(q.prompt, q.answer)] for q in asked])
        logits, wanted = answer_logits(model, batch)
        wrong = torch.zeros_like(batch.labels[:, 1:], dtype=torch.bool)
        wrong[batch.labels[:, 1:] != IGNORED] = logits.argmax(-1) != wanted
        for question, bad in zip(asked, wrong.any(-1).tolist(), strict=True):
            scores[question.kind].append(not bad)
            scores.setdefault(question.topic, []).append(not bad)
    return {name: sum(values) / len(values) for name, values in scores.items()}


def align(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, report: Callable[[str], None]
) -> None:
    """Bring what the tower and projector say of a cell near the words for it: colour + shape, or ``empty``."""
    seeing = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    words = model.get_input_embeddings().weight.detach()
    ids = {
        word: processor.tokenizer(f" {word}", add_special_tokens=False).input_ids[0]
        for word in (*gridworld.COLOURS, *gridworld.SHAPES, "empty")
    }
    rng = random.Random("real_vlm:align")
    supply = gridworld.WORLD.scenes("train", rng)
    adam = torch.optim.AdamW(seeing, weight_decay=0.0)
    for step in range(ALIGN_STEPS):
        scenes = [next(supply) for _ in range(ALIGN_BATCH)]
        pixels = processor.image_processor([gridworld.render(s) for s in scenes], return_tensors="pt")
        wanted = words[ids["empty"]].repeat(ALIGN_BATCH, IMAGE_TOKENS, 1)
        for number, scene in enumerate(scenes):
            for thing in scene.things:
                wanted[number, thing.row * 3 + thing.column] = (
                    words[ids[thing.colour]] + words[ids[thing.shape]]
                )
        features = torch.stack(model.model.get_image_features(pixels["pixel_values"]).pooler_output)
        error = (features - wanted).square().mean() / wanted.square().mean()
        update(adam, seeing, error, ALIGN_RATE * min(1, (step + 1) / WARM_UP, 2 * (1 - step / ALIGN_STEPS)))
        report(f"align {step + 1} error {error.item():.4f}")


def update(adam: torch.optim.Optimizer, moved: Sequence[Tensor], loss: Tensor, rate: float) -> None:
    """One clipped step at ``rate``."""
    for group in adam.param_groups:
        group["lr"] = rate
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(moved, 1.0)
    adam.step()


def learn_to_talk(
    model: LlavaForConditionalGeneration,
    encoder: Encoder,
    arguments: argparse.Namespace,
    report: Callable[[str], None],
    look: Callable[[int], None],
) -> None:
    """Tower, projector and low-rank change, on talks of several turns about one picture each."""
    moved = [weight for weight in model.parameters() if weight.requires_grad]
    rng = random.Random(f"real_vlm:{arguments.seed}:talk")
    supply = gridworld.WORLD.scenes("train", rng)
    adam = torch.optim.AdamW(moved, betas=BETAS, weight_decay=0.0)
    for step in range(arguments.steps):
        scenes = [next(supply) for _ in range(SCENES)]
        talks = [talk(scene, rng, turns=TURNS, remarks=arguments.remarks) for scene in scenes]
        logits, wanted = answer_logits(model, encoder.batch([gridworld.render(s) for s in scenes], talks))
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        update(
            adam, moved, loss, RATE * min(1, (step + 1) / WARM_UP, 2 * (1 - step / arguments.steps) + 0.02)
        )
        report(f"talk {step + 1} loss {loss.item():.3f}")
        if (step + 1) % LOOK_EVERY == 0:
            look(step + 1)


def trained(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """What was trained, float16: the tower's and projector's weights, and the two factors of each low-rank change."""
    known = {name.replace(".default", ""): weight for name, weight in model.named_parameters()}
    return {
        name: weight.detach().to(torch.float16).contiguous()
        for name, weight in known.items()
        if weight.requires_grad
    }


def main() -> None:
    """Train; every ``LOOK_EVERY`` steps save what is trained and print the validation accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--language-model", type=Path, required=True, help="folder that language_model.py wrote"
    )
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600, help="a multiple of 100")
    parser.add_argument("--remarks", type=float, default=0.3, help="share of remarks on where things are")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    processor = build_processor(arguments.language_model)
    model = build_model(arguments.language_model, processor, arguments.seed).eval()
    encoder = Encoder(processor)
    questions = load_questions("gridworld", "validation", limit=512)
    model.model.language_model.requires_grad_(False)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=ALIGN_STEPS + arguments.steps)

        def report(text: str) -> None:
            progress.update(task, advance=1, description=text)

        def look(step: int) -> None:
            save_file(trained(model), arguments.out, metadata={"rank": str(RANK)})
            progress.console.print(f"after {step}: {table(accuracy(model, encoder, questions))}")

        align(model, processor, report)
        low_rank = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS)
        inject_adapter_in_model(low_rank, model.model.language_model)
        learn_to_talk(model, encoder, arguments, report, look)


if __name__ == "__main__":
    main()
