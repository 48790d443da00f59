"""Training of ScAle scalars on a frozen model; ``scale_export.training.run`` is the way in."""
