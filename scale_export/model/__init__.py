"""The base model: its weights, the portable decoder, and the hooks that are the reference."""
