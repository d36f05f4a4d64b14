"""Training: split -> loader -> loop -> checkpoint -> bundle, wired by driver.py."""
