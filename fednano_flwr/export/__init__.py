"""Taking the result of a run away: its adapters, or a model that has them in its weights."""
