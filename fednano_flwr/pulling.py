"""Fetching replies so that one that cannot be read is its sender's failure and nobody else's."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid


def pull(grid: Grid, message_ids: Iterable[str]) -> tuple[list[Message], dict[str, str]]:
    """The replies that are there, and, by the id of the question, why a reply cannot be read.

    A SuperLink hands a reply out once, and one that is not what it should be ends the whole fetch
    with an exception: what was fetched along with it would be lost. From a SuperLink replies are
    therefore fetched one by one. In simulation they are in memory and were read before.

    Raises:
        httpx.HTTPError: the SuperLink does not answer, or not to this run any more.
    """
    if not isinstance(grid, HttpGrid):
        return list(grid.pull_messages(list(message_ids))), {}
    replies: list[Message] = []
    unreadable: dict[str, str] = {}
    for message_id in message_ids:
        try:
            replies += grid.pull_messages([message_id])
        except httpx.HTTPError:
            raise
        except Exception as error:  # whatever a node sent in place of a reply
            unreadable[message_id] = f"its reply cannot be read: {type(error).__name__}: {error}"
    return replies, unreadable
