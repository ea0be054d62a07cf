"""One module a data set: how it is found, checked and read."""
