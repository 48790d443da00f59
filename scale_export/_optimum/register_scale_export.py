"""``optimum-cli export scale …``: the same command as ``scale-export fold``, inside Optimum.

Optimum loads this file from its ``commands/register`` folder, where the wheel puts it.
"""

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class ScaleExportCommand(BaseOptimumCLICommand):
    """Hands every word on to the command of ``scale-export fold``."""

    COMMAND = CommandInfo(
        name="scale", help="Export a ScAle-adapted vision-language model (scale-export fold)."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.prefix_chars = (
            "\0"  # options, --help among them, belong to scale-export, which explains and checks them
        )
        parser.add_argument("words", nargs=argparse.REMAINDER, help="What scale-export fold takes.")

    def run(self) -> None:
        from scale_export.cli.app import fold_in_optimum

        sys.exit(fold_in_optimum(self.args.words))


REGISTER_COMMANDS = [(ScaleExportCommand, ExportCommand)]
