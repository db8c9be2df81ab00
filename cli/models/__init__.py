"""Actions on model files: `import`, `export`, `ema`, `weights`, `publish`."""
