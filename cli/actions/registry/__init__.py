"""Actions on tracked runs and the champion: `promote`, `rollback`, `history`, `runs`, `reap`, `sync`."""
