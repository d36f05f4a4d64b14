"""Labelled images: names, manifests, folder trees, splits, leaks."""
