"""Samples -> batches, and the leak check before the first step."""
