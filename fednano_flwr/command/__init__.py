"""What `fednano run` is made of: config overrides, a SuperLink of its own, and its end."""
