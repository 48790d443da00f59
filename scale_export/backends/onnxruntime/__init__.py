"""The ONNX Runtime backend (contract C5)."""
