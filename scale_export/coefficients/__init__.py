"""The coefficient file and its rules."""
