"""Both flows on handwritten digits, on disk or on an S3 server of this machine."""
