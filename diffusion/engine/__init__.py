"""The engine: many requests' walks beside each other, a network pass for all of them at a time."""
