"""Published results in the forms that people and platforms take."""
