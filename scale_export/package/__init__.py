"""The folder that ships: its manifest, staging, signing and requirements."""
