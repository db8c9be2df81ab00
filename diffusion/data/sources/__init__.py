"""The data sets, a module for each kind; diffusion/data/registry.py has them by name."""
