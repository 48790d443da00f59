"""``optimum-cli export scale …``: the same command as ``scale-export fold``, inside Optimum.

Optimum loads this file from its ``commands/register`` folder, where the wheel puts it.
"""

import argparse
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class ScaleExportCommand(BaseOptimumCLICommand):
    """Hands every argument on to ``scale-export fold``."""

    COMMAND = CommandInfo(
        name="scale", help="Export a ScAle-adapted vision-language model (scale-export fold)."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="What scale-export fold takes.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Options belong to scale-export, which explains and checks them itself.
        self.parser.prefix_chars = "\0"
        self.parser.add_help = False

    def run(self) -> None:
        from scale_export.cli.app import main

        main(["fold", *self.args.arguments])


REGISTER_COMMANDS = [(ScaleExportCommand, ExportCommand)]
