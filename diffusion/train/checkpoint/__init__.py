"""A training's states, its run directory, and how it is resumed."""
