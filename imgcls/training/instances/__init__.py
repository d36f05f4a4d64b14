"""Samples of many instances in training: the tiles of a picture, the frames of a file."""
