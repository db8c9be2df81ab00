"""Prefect servers: a temporary one per run, those of `diffctl up`, and deployments on them."""
