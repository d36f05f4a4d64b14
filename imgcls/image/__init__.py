"""From encoded bytes to model input: one decode spec, one preprocess spec."""
