"""The data sets, a module for each kind; diffusion/data/source_registry.py has them by name."""
