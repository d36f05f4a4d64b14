"""Containers that hold images: listed into members, read by ranges."""
