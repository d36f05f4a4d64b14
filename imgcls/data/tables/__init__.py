"""How a table is laid out and encoded, before its cells are read."""
