"""Every decision and refusal of an export, before a weight is read."""
