"""Whether a model's two halves, put together, are the model: `fednano check`."""
