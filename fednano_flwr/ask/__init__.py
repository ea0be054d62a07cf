"""`fednano ask`, `serve` and `web`: a run's tuned model in use."""
