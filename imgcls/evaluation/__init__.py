"""A model on labelled images, or published predictions against labels."""
