"""What people say of images: asked in a queue, taken back, and looked through for mistakes."""
