"""The one exception that everything in `fednano_flwr.data` raises for a user to read."""


class DataError(ValueError):
    """Data, or a setting for it, cannot be used; the message says why and what to do."""
