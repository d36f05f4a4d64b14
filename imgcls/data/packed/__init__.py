"""Labelled images in containers: names, labels beside them, label columns."""
