"""Opens and runs a package. Nothing here needs torch or a library that exports."""
