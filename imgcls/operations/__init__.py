"""What an operator runs: check, submit, schedule."""
