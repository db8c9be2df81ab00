"""Learning-rate schedules of this project."""
