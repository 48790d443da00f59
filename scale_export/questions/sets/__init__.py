"""Question sets, one file each: its name is its registration."""
