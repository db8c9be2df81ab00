"""A network, a process and an extractor that nobody needs, a file each: the test of the registries."""
