"""What `ray job submit -- python -m jobs.X` runs: parse, one library call, one JSON line."""
