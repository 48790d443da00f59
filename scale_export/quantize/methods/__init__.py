"""Quantization methods, one file each: its name is its registration."""
