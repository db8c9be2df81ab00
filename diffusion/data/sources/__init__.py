"""The data sets, one module per kind; `source_registry` has them by name."""
