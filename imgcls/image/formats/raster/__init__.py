"""Pictures of the raster formats: bytes -> pixels."""
