"""Models made elsewhere become bundles: what they are, what they expect, and the proof."""
