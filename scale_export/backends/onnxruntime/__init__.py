"""The ONNX Runtime backend (``docs/package.md``)."""
