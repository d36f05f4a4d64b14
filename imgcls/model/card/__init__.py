"""The card of a model, as Markdown and as a page."""
