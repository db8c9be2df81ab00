"""The runs of trainings in MLflow: scores, cells, searches, and their folders."""
