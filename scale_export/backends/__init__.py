"""Emission: one folder for each runtime."""
