"""What papers report, and the protocols by which they measured it."""
