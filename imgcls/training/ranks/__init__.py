"""One rank or several: devices, Ray Train workers, their messages."""
