"""Emission for Core AI."""
