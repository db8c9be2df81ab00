"""Which cell, and which model, is better, by scores of one protocol. It loads no torch."""
