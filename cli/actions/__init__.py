"""The work of the commands. Each module is imported by its command, since it may load torch."""
