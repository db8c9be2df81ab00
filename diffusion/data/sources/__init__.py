"""The data sets, one module per kind; `data_config` has them by name."""
