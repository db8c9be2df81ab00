"""Operators of measurements and methods of editing of this project."""
