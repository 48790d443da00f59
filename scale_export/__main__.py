"""``python -m scale_export``."""

from .cli import main

main()
