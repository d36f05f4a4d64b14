"""What bounds a decoder process: its sandbox, what it loads before, its share of memory."""
