"""Two models side by side on the same images: who flipped, and which one is right."""
