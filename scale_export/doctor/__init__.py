"""Which stage, which layer, which head departs from the reference."""
