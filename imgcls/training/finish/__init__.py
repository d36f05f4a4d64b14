"""After the last epoch: measure, calibrate, draw, bundle, register."""
