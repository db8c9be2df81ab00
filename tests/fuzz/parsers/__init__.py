"""One module a parser of files from outside; `tests.fuzz` says what it holds."""
