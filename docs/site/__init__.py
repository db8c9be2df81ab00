"""What `make docs` adds: the repository's own pages, the reference from the code, executed notebooks."""
