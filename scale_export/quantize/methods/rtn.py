"""Round-to-nearest, by ONNX Runtime's own block quantizer."""

from __future__ import annotations

import numpy as np
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from scale_export.core.records import Float32
from scale_export.core.words import INTEGER
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.quantize.method import Method, Moments


class Rtn(Method):
    """Each block's scale reaches its largest weight."""

    calibration = "unused"
    precisions = INTEGER

    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True, bits=bits)
        by_input = np.ascontiguousarray(weight.T, dtype=np.float32)
        codes, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(by_input)
        return BlockMatrix(
            codes=codes, scales=scales, bits=bits, block_size=block_size, in_features=weight.shape[1]
        )


METHOD = Rtn()
