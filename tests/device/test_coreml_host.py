"""What ``runtime.json`` names is looked for among the package's graphs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from scale_export.core.errors import UserError
from scale_export.device.coreml.engine import CoreMLEngine
from scale_export.device.coreml.host import DecoderPart, HostConfig, RotaryTable, write_host_config


@pytest.mark.parametrize("name", ["../decoder.mlpackage", "/decoder.mlpackage", "decoder_2.mlpackage", ""])
def test_a_part_that_is_none_of_the_graphs_is_refused(name: str, tmp_path: Path) -> None:
    config = HostConfig(
        fold="weights",
        compute_units="all",
        prefill_tokens=8,
        cache_slots=40,
        context_length=32,
        hidden_size=64,
        head_dim=32,
        vocab_size=96,
        rotaries=(RotaryTable(inv_freq=[1.0], axes=[0], scale=1.0),),
        image_token_id=3,
        eos_token_ids=[0],
        decoder=(DecoderPart(file=name, first=0, stop=2),),
        scalars=None,
    )
    write_host_config(config, tmp_path / "runtime.json")
    graphs = {"runtime": tmp_path / "runtime.json", "decoder": tmp_path / "decoder.mlpackage"}
    with pytest.raises(UserError, match="none of the package's graphs"):
        CoreMLEngine(graphs)
