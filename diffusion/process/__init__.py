"""The mathematics: noise processes, parameterizations, losses, noise from counters."""
