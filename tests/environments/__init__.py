"""Which versions of the libraries work: environments are built, asked and written into ``docs/compatibility.md``."""
