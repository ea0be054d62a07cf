"""Starts a SuperLink and the programs of a run, and ends them."""
