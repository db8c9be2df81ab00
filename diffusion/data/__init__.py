"""Data sets: where they come from, how their files are read, and preparing them as stores."""
