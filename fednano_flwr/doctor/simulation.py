"""What a machine needs on which `fednano run` starts the server and all clients."""

from __future__ import annotations

from dataclasses import replace

from fednano_flwr.doctor import client, server
from fednano_flwr.doctor.node import Node
from fednano_flwr.doctor.subject import Subject, Themes

EVERY_CLIENT = Node(partition_id=0, num_partitions=1)
"""In simulation nodes have no more of their own, and Flower says it to them."""


def checks(subject: Subject) -> Themes:
    """Those of a server and of a client, what both ask for once."""
    subject = replace(subject, simulated=True)
    themes: Themes = server.checks(subject)
    for theme, added in client.checks(replace(subject, node=EVERY_CLIENT)).items():
        if theme != "node config":
            known = {name for name, _ in themes.get(theme, [])}
            new = [(name, check) for name, check in added if name not in known]
            themes.setdefault(theme, []).extend(new)
    return themes
