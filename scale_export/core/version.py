"""The version of the tool: packages and reports carry it."""

__version__ = "0.2.0"
