"""What is measured of each image beside its decoding, and small pictures of it."""
