"""What a person meets at a terminal: the flags with their help, and the result in words."""
