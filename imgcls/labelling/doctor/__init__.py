"""Labelled data looked through: labels that may be wrong, duplicates, pictures that show little."""
