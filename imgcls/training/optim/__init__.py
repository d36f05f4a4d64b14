"""Epochs, steps, losses and all that they change."""
