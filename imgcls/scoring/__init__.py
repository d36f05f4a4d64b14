"""Scoring: listing -> plan -> shard -> commit -> publish, wired by driver.py."""
