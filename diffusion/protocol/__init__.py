"""What makes numbers comparable: settings, the grid, cells and the card. It loads no torch."""
