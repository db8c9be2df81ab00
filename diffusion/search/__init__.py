"""Search over trainings: what the section `search` of params.yaml stands for, and what came of it."""
