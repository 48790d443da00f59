"""Export ScAle-adapted vision-language models to devices, and prove that the export answers as PyTorch did."""

from __future__ import annotations

__version__ = "0.1.0"
