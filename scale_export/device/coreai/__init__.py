"""Core AI packages, run by Apple's own runtime."""
