"""Actions on the project: `init`, `upgrade`, `use`, `set`, `check`, `schema`, `prune`, `docs`."""
