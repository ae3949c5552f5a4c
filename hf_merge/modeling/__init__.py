"""A running transformers model, for search and serving alike."""
