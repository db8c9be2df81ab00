"""The command line: a few lines a command over the library, the tracking and the flows."""
