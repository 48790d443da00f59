"""Vision towers that several families share, as modules that export."""
