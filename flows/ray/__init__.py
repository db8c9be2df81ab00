"""Ray: sampling and search trials on several devices or machines."""
