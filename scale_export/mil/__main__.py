"""``python -m scale_export.mil``."""

from .cli import main

main()
