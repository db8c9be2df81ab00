"""What MLflow's pages show: descriptions, tables, charts and links."""
