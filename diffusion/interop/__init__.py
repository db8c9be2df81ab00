"""Models in from other projects, and out to them."""
