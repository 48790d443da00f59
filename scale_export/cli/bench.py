"""``scale-export bench``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from scale_export.core.defaults import ANSWER_TOKENS, BENCH_PROMPT_TOKENS, BENCH_REPEATS
from scale_export.core.errors import EXIT_OK
from scale_export.core.progress import WorkLog

from .display import console, quiet_libraries
from .options import Json, PackageArg, Threads


@quiet_libraries()
def bench(
    package: PackageArg,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the prompt, in tokens.")
    ] = BENCH_PROMPT_TOKENS,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded after it.")] = ANSWER_TOKENS,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = BENCH_REPEATS,
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Measure prefill and decode speed, time to first token, memory, and the share of the bandwidth floor.

    Example: scale-export bench spatial-cpu
    """
    from scale_export.device.bench import bench_package
    from scale_export.device.package import open_package

    log = WorkLog()
    opened = open_package(package, threads=threads)
    with log.stage("bench"):
        result = bench_package(
            opened,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            advance=lambda done, total: log.advance("repetitions", done, total),
        )
    if as_json:
        print(json.dumps(result.to_json()))
        return EXIT_OK
    share = (
        "not the floor: the decoder fits the caches"
        if result.bandwidth_share is None
        else f"{result.bandwidth_share:.0%}"
    )
    table = Table(
        title=f"{opened.files.manifest.name}, {result.threads} threads, median of {result.repeats}",
        show_header=False,
    )
    table.add_row("measured on", result.executed_by)
    table.add_row("prefill", f"{result.prefill_tokens_per_second:,.0f} tokens/s of {result.prompt_tokens}")
    table.add_row("decode", f"{result.decode_ms:.2f} ms/token ({1e3 / result.decode_ms:,.0f} tokens/s)")
    table.add_row("time to first token", f"{result.first_token_ms:.1f} ms, picture included")
    table.add_row("peak memory", f"{result.peak_memory_bytes / 1e6:,.0f} MB")
    table.add_row("decoder weights", f"{result.decoder_bytes / 1e6:,.1f} MB")
    table.add_row("memory bandwidth", f"{result.bandwidth_bytes_per_second / 1e9:.1f} GB/s")
    table.add_row("share of the bandwidth floor", share)
    console.print(table)
    return EXIT_OK
