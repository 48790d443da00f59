"""Writing and checking a folded checkpoint holds little more than one chunk, whatever the model's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

LAYERS, HIDDEN, MLP, VOCABULARY = 2, 1024, 4096, 32768

SCRIPT = """
import shutil, sys
from pathlib import Path
import numpy as np
from scale_export.proof.stored_tensors import tensors_leg
from scale_export.backends.checkpoint.writer import edits_of, write_weights
from scale_export.model.checkpoint import Checkpoint
from scale_export.model.folding import fold
from scale_export.core.progress import peak_memory
from scale_export.coefficients.file import Coefficients
from scale_export.coefficients.rules import BaseIdentity, Bound
from scale_export.core.records import DecoderSpec
from scale_export.model.weights import CheckpointWeights

base, out = Path(sys.argv[1]), Path(sys.argv[2])
layers, hidden, mlp, vocabulary = map(int, sys.argv[3:])
spec = DecoderSpec(
    hidden_size=hidden, intermediate_size=mlp, vocab_size=vocabulary, num_layers=layers, num_heads=8, num_kv_heads=8,
    head_dim=hidden // 8, rms_norm_eps=1e-5, rotaries=(), layer_rotaries=(0,) * layers, max_positions=8,
    sliding_windows=(None,) * layers,
)
weights = CheckpointWeights(checkpoint=Checkpoint(base), spec=spec, prefix="model.language_model")
rng = np.random.default_rng(0)
identity = BaseIdentity(
    base_model="", base_revision=None, model_type="", config_sha256="", tensor_sha256={},
    prompt_template_sha256=None, transformers_version="",
)
coefficients = Coefficients(
    scope="all", layer_indices=tuple(range(layers)), mlp_site="output", bound=Bound(), num_heads=8,
    head_scale=tuple(rng.uniform(0, 2, (layers, 8)).astype(np.float32)), head_dim=hidden // 8,
    mlp_scale=rng.uniform(0, 2, layers).astype(np.float32), base=identity,
)
folded = fold(weights, coefficients, "weights")
before = peak_memory()
out.mkdir()
shutil.copy(base / "config.json", out)
write_weights(weights.checkpoint, edits_of(folded, weights), out)
leg = tensors_leg(folded, weights, out)
after = peak_memory()
assert leg.passed, leg
print(after - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child counts its parent's memory")
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path):
    """A 130 MB checkpoint with a tensor of 67 MB: the pieces that are folded and checked stay below 100 MB."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) / 32).astype(np.float16)

    tensors = {"lm_head.weight": random(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.language_model.layers.{layer}"
        tensors[f"{prefix}.self_attn.o_proj.weight"] = random(HIDDEN, HIDDEN)
        tensors[f"{prefix}.mlp.down_proj.weight"] = random(HIDDEN, MLP)
        tensors[f"{prefix}.mlp.up_proj.weight"] = random(MLP, HIDDEN)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = random(2 * MLP, HIDDEN)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file(tensors, base / "model.safetensors")
    largest, total = (f(t.nbytes for t in tensors.values()) for f in (max, sum))
    assert total > 130_000_000
    sizes = [str(size) for size in (LAYERS, HIDDEN, MLP, VOCABULARY)]
    command = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path / "out"), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 100_000_000 < 2 * largest, f"{int(done.stdout):,} bytes"
