"""`python -m fednano_flwr.cli` is `fednano`."""

from fednano_flwr.cli import main

main()
