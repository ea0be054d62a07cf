"""A key of the run config: one declaration says its type, range, meaning and role.

A key is a field of a `Section`; its default is in pyproject.toml. docs/config.md is generated from
the declarations (`python -m fednano_flwr.config.docs`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, get_type_hints

SMALLEST, LARGEST = -(2**63), 2**63 - 1
"""Whole numbers that TOML, Flower's messages and JSON readers carry."""


class ConfigError(ValueError):
    """A run-config key is unknown, missing, or has a value that cannot be used."""


@dataclass(frozen=True)
class Range:
    """Which values a key accepts, beside its type.

    Attributes:
        least, most: bounds that are accepted.
        above, below: bounds that are not.
        choices: the only texts that are accepted.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def accepts(self, value: Any) -> bool:
        return (
            (not self.choices or value in self.choices)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(choice or "empty" for choice in self.choices)
        low, high = (self.above, self.below)
        low = self.least if low is None else low
        high = self.most if high is None else high
        if low is not None and high is not None and abs(high) <= 1:
            start, end = "[" if self.above is None else "(", "]" if self.below is None else ")"
            return f"in {start}{low:g}, {high:g}{end}"
        parts = {"above": self.above, "at least": self.least, "at most": self.most}
        parts["below"] = self.below
        return ", ".join(f"{word} {_number(one)}" for word, one in parts.items() if one is not None)


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Key:
    """What a key's declaration says.

    Attributes:
        meaning: for people, in Markdown; a row of docs/config.md.
        range: of its values.
        path: a file or folder, which may be given relative to the current folder; what is not there
            may be something else ("maybe"), such as a hub id.
        resumable: a resumed run may have another value: where things run, how fast, how long
            something is waited for.
        place: a place on this machine, which makes no difference between compared runs.
    """

    meaning: str
    range: Range
    path: str = ""
    resumable: bool = False
    place: bool = False


def key(
    meaning: str,
    *,
    path: str = "",
    resumable: bool = False,
    place: bool = False,
    default: Any = dataclasses.MISSING,
    **bounds: Any,
) -> Any:
    """Declare a key as a field of a `Section`; `bounds` are those of `Range`, the rest of `Key`.

    Args:
        default: of a section that is made by hand; a run config names every key.
    """
    found = Key(meaning, Range(**bounds), path, resumable, place)
    return dataclasses.field(default=default, metadata={"key": found})


@dataclass(frozen=True)
class Section:
    """A group of keys; a field `min_partition_size` is the key `PREFIXmin-partition-size`."""

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            found: Key | None = field.metadata.get("key")
            if found is not None:
                value = getattr(self, field.name)
                self.require(found.range.accepts(value), field.name, str(found.range))
        self.check()

    def check(self) -> None:
        """Check what the range of one key does not say.

        Raises:
            ConfigError: names the key, its value and what is accepted.
        """

    def require(self, ok: bool, name: str, accepts: str) -> None:
        """
        Args:
            name: of the field, as `min_partition_size`.

        Raises:
            ConfigError: not `ok`.
        """
        if not ok:
            shown = f"{self.prefix}{name.replace('_', '-')} = {getattr(self, name)!r}"
            raise ConfigError(f"{shown}: must be {accepts}")


def declared(section: type[Section], prefix: str = "") -> Iterator[tuple[str, type, Key]]:
    """Every key of a section and of those in it, with its type, in the order of the fields."""
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        name, kind = prefix + field.name.replace("_", "-"), hints[field.name]
        if issubclass(kind, Section):
            yield from declared(kind, f"{name}.")
        else:
            yield name, kind, field.metadata["key"]


def build(section: type[Section], flat: Mapping[str, Any], prefix: str = "") -> Any:
    """A section from flat keys.

    Raises:
        ConfigError: a key is missing, of the wrong type or out of range.
    """
    values, hints = {}, get_type_hints(section)
    for field in dataclasses.fields(section):
        name, kind = prefix + field.name.replace("_", "-"), hints[field.name]
        if issubclass(kind, Section):
            values[field.name] = build(kind, flat, f"{name}.")
        elif name not in flat:
            raise ConfigError(f"{name} is missing; its default belongs in pyproject.toml")
        else:
            values[field.name] = _typed(name, kind, flat[name])
    return section(**values)


def _typed(name: str, kind: type, value: Any) -> Any:
    """The value in its key's type.

    Raises:
        ConfigError: it has another type, is a number that cannot be computed with or sent, or a
            text that no file's name and no message can hold.
    """
    accepts = ""
    if type(value) is int and kind in (int, float) and not SMALLEST <= value <= LARGEST:
        accepts = "from -2^63 to 2^63 - 1"
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is not kind:
        accepts = f"of type {kind.__name__}"
    elif isinstance(value, float) and not isfinite(value):
        accepts = "a finite number"
    elif isinstance(value, str) and not _is_text(value):
        accepts = "text that UTF-8 can hold, without a NUL"
    if accepts:
        raise ConfigError(f"{name} = {value!r}: must be {accepts}")
    return value


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:  # half a character
        return False


def check_device(name: str, value: str) -> None:
    """Refuse what cannot be the name of a PyTorch device.

    Raises:
        ConfigError: `name`, the key, is in the message.
    """
    if re.fullmatch(r"[a-z]+(:\d+)?", value) is None:
        raise ConfigError(
            f"{name} = {value!r}: must be the name of a PyTorch device, such as "
            '"cpu", "cuda" or "cuda:1"'
        )
