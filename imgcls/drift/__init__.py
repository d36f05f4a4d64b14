"""When the pictures change: a reference, a comparison of every night with it, what is held."""
