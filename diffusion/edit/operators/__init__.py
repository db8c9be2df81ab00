"""The linear operators, one file each."""
