"""The network by one library in one precision, chosen and proven by golden outputs."""
