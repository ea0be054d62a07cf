"""The calculator of a federation's capacity, and what it is fed with and checked against."""
