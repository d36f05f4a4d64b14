"""The network as it runs: backends, golden check, predictions and decisions."""
