"""One module per parser of outside files; `tests.fuzz` describes them."""
