"""The checkpoint backend: a folded Hugging Face model directory, for runtimes that take one (``targets/cpu.toml``)."""
