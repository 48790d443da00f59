"""ONNX Runtime packages."""
