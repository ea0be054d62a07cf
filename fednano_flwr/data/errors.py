"""The exceptions that say what is wrong with data, for a user to read."""

LONGEST_REASON = 200


class DataError(ValueError):
    """Data, or a setting for it, cannot be used; the message says why and what to do."""


class SampleError(DataError):
    """One sample that this model cannot take; it is left out.

    Args:
        reason: for people and for counting: other samples have the same, but for its numbers.
        detail: what else is known of this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        line = reason.splitlines()[0][:LONGEST_REASON]
        self.reason = line.encode(errors="replace").decode()  # half characters cannot be sent
