"""What a run says of itself, for people: best effort, beside the rows."""
