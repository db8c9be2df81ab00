"""The engine's web face: images of a model, or of whatever is champion, behind an address."""
