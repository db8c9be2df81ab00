"""Actions on scores: `evaluate`, `sweep`, `compare`, `seeds`."""
