"""Random changes of training images, and the draws that decide them."""
