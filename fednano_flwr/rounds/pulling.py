"""Fetching replies so that one that cannot be read is its sender's failure and nobody else's."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid


def pull(grid: Grid, message_ids: Iterable[str]) -> tuple[dict[str, Message], dict[str, str]]:
    """By the id of the question: the replies that are there, and why one cannot be read.

    A SuperLink hands a reply out once, and one that is not what it should be ends the whole fetch
    with an exception: what was fetched along with it would be lost. From a SuperLink replies are
    therefore fetched one by one, and belong to the question that was asked for, whatever they say
    themselves: a node can write that into them. In simulation they are in memory and were read
    before.

    Raises:
        httpx.HTTPError: the SuperLink does not answer, or not to this run any more.
    """
    if not isinstance(grid, HttpGrid):
        found = grid.pull_messages(list(message_ids))
        return {reply.metadata.reply_to_message_id: reply for reply in found}, {}
    replies: dict[str, Message] = {}
    unreadable: dict[str, str] = {}
    for message_id in message_ids:
        try:
            for reply in grid.pull_messages([message_id]):
                replies[message_id] = reply
        except httpx.HTTPError:
            raise
        except Exception as error:  # whatever a node sent in place of a reply
            unreadable[message_id] = f"its reply cannot be read: {type(error).__name__}: {error}"
    return replies, unreadable
