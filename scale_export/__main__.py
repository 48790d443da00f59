"""``python -m scale_export``."""

from scale_export.cli.app import main

main()
