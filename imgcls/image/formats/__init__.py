"""Formats beyond Pillow's: their names, and the readers of optional packages."""
