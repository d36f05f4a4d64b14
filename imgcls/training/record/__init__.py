"""What a training writes down while it runs, and finds again."""
