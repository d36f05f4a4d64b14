"""What a training is, settled before anything is written."""
