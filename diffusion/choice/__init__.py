"""Selection of cells and models by scores of one protocol. This package loads no torch."""
