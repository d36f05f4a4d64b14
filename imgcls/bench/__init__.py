"""Measure the stages beside the limits of the machine."""
