"""What every other package builds on: files, seeds, text, signals."""
