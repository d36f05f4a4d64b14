"""What lies in an output, for writers and readers alike."""
