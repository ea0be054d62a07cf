"""One script a claim: `python -m benchmarks.NAME` prints its table and writes its JSON."""
