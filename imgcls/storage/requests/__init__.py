"""One request to a store: what its failure means, when to try again, how many at once."""
