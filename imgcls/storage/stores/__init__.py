"""The stores themselves: local disk, S3 and its like, Google's and Azure's."""
