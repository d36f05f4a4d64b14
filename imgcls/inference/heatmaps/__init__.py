"""Which places of a picture an answer rests on."""
