"""The Core ML backend: multi-function ML programs with a stateful KV cache (iOS 18, macOS 15)."""
