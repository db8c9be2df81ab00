"""Options, progress, tables and the process, shared by commands."""
