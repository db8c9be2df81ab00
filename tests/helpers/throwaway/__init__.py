"""A throw-away network, process and extractor, one file each, for tests of the registries."""
