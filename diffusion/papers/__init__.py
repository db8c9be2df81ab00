"""Published figures with their protocols, and comparisons with one's own scores."""
