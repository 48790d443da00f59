"""Core ML packages, run by the interpreter or by the device."""
