"""Which column of a file is read as what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError

Roles = Mapping[str, Sequence[str]]
"""What columns can be read as, and the usual names of each in lower case."""


def named_columns(dataset: Dataset, roles: Roles) -> dict[str, str]:
    """Column by role, as `dataset.columns` and `dataset.group` have it.

    Raises:
        DataError: not of the form `question=text,answer=label`, or of another role.
    """
    found: dict[str, str] = {}
    for part in filter(str.strip, dataset.columns.split(",")):
        role, _, column = (word.strip() for word in part.partition("="))
        if role not in roles or not column or role in found:
            raise DataError(
                f"dataset.columns = '{dataset.columns}': must name each column once, as in "
                f"question=text,answer=label. With dataset.name = {dataset.name} it may name: "
                f"{', '.join(roles)}."
            )
        found[role] = column
    if dataset.group and found.setdefault("group", dataset.group) != dataset.group:
        raise DataError(
            f"dataset.group is '{dataset.group}', and dataset.columns says group="
            f"{found['group']}. Leave one of them empty."
        )
    return found


def find_columns(
    file: Path,
    there: Sequence[str],
    named: Mapping[str, str],
    roles: Roles,
) -> dict[str, str]:
    """Column by role: the one that is named, else the first with one of the role's usual names.

    A column is taken for one role, the earlier of two.

    Args:
        there: the file's columns.

    Raises:
        DataError: the file has no such column.
    """
    for role, column in named.items():
        if column not in there:
            key = "dataset.group" if role == "group" else "dataset.columns"
            raise DataError(
                f"{file} has no column '{column}', which {key} names; its columns are "
                f"{', '.join(there) or 'none'}."
            )
    found = dict(named)
    free = {name.strip().casefold(): name for name in there if name not in named.values()}
    for role, names in roles.items():
        usual = next((name for name in names if name in free), None)
        if usual is not None and role not in found:
            found[role] = free.pop(usual)
    return {role: found[role] for role in roles if role in found}
