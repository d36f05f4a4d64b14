"""Which images train, validate, test: by hash, balanced where units are few, and folds."""
