"""`fednano ask`, `serve` and `web`: a run's tuned model in use."""

MAX_TOKENS = 64
"""Of a free answer, where the run's `max-answer-tokens`, which its data's answers need, is less."""
