"""What commands and stages share: options, images, progress, tables."""
