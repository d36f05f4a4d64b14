"""Train an image classifier and score whole buckets with it, every image accounted for."""
