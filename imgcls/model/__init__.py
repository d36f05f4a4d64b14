"""The classifier: architecture, labels, metrics, bundle, registry."""
