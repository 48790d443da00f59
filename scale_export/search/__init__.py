"""Bits for every matrix under a budget."""
