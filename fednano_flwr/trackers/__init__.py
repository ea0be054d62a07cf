"""Where a run's figures go while it runs, beside its own folder: one small class a service."""
