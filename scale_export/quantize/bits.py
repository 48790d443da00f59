"""Bits per matrix, beside those of a precision: files that say so."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.inside import check_regular
from scale_export.core.records import DecoderSpec
from scale_export.model.blocks import Bits

_MAX_BYTES = 1 << 20


def read_bits_plan(path: Path) -> dict[str, int]:
    """The table ``[bits]`` of a TOML file: matrix → 4 or 8; unchecked, see ``check_bits``.

    Raises:
        UserError: no such file, or not one.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            table = tomllib.loads(file.read(_MAX_BYTES).decode())
    except OSError as error:
        raise UserError(f"bits plan {path} cannot be read ({error.strerror}): check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"bits plan {path} is not valid TOML ({error}): correct it") from None
    bits = table.get("bits")
    if table.keys() != {"bits"} or not isinstance(bits, dict):
        raise UserError(
            f'bits plan {path} is refused: it holds one table, [bits], of lines "layers.0.q_proj" = 8'
        )
    return bits


def write_bits_plan(bits: Mapping[str, int], path: Path) -> None:
    """What ``read_bits_plan`` reads."""
    lines = [f'"{name}" = {width}' for name, width in bits.items()]
    path.write_text("\n".join(["[bits]", *lines, ""]), encoding="utf-8")


def check_bits(bits: Mapping[str, int], spec: DecoderSpec, default: Bits) -> dict[str, Bits]:
    """The matrices whose bits are not ``default``; raises UserError for one that there isn't, or bits but 4 and 8."""
    known = [*spec.linears(), "embedding"]
    checked: dict[str, Bits] = {}
    for name, width in bits.items():
        if name not in known:
            raise UserError(
                f"the bits plan names {name!r}, which is not a matrix of the decoder{did_you_mean(name, known)}; "
                f"names are embedding, lm_head, layers.0.q_proj and the like"
            )
        if isinstance(width, bool) or width not in (4, 8):
            raise UserError(f"the bits plan gives {name} {width!r} bits: give it 4 or 8")
        if width != default:
            checked[name] = 4 if width == 4 else 8
    return checked
