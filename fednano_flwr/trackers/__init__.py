"""Trackers log a run's figures to a service while it runs: one small class each."""
