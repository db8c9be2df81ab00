"""Downloads of published files into the user's cache, verified and resumed."""
