"""JPEGs decoded and resized on the model's GPU."""
