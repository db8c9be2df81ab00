"""The mathematics: how noise comes in, what a network predicts, losses, noise by counter."""
