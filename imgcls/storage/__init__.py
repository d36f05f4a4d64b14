"""The only place that opens a URI."""
