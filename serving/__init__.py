"""The HTTP server of a model or the champion, and the playground."""
