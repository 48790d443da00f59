"""Training of ScAle scalars on a frozen model; ``scale_export.train`` is the way in."""
