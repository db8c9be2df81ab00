"""Prefect: the pipeline, the sweep and the deployments."""
