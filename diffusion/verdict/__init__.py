"""A verdict on changes of params.yaml: arms, pairs of trainings, decisions, and the page."""
