"""The networks, their blocks and presets; the model file that describes itself."""
