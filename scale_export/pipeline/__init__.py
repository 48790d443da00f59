"""The export and its verification, read aloud."""
