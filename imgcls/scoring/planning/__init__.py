"""What there is to score, what is done already, and which shards do the rest."""
