"""The ground: published files into a cache of raw files, verified and resumed."""
