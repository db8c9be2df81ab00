"""Actions that run trials: `search`, `verdict`."""
