"""Commits -> parts -> manifest, the proof of it, and what is taken back."""
