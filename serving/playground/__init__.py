"""The playground: a page over the engine, for one person at this machine."""
