"""The command line: one file a subcommand."""


def main() -> None:
    """Entry point of the `fednano` command."""
    from fednano_flwr.cli.app import main as run

    run()
