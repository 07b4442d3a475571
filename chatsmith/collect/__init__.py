"""New training data from a model behind an endpoint: `chatsmith collect`."""
