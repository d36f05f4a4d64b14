"""The morning page: what a published night found, for the person who comes in the morning."""
