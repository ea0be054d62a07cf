"""A terminal: what programs have written to it, as one sees it."""

from __future__ import annotations

import re

_PIECES = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])")


class Terminal:
    """Lines of `width` columns, as many as are needed.

    Attributes:
        cursor: whether it is shown.
        colours: how often one was set.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.cursor = True
        self.colours = 0
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """What is there, without empty lines at the end."""
        rows = ["".join(row).rstrip() for row in self._rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def write(self, text: str) -> None:
        """
        Raises:
            ValueError: it holds a control sequence that this terminal does not know.
        """
        end = 0
        for piece in _PIECES.finditer(text):
            if piece.start() != end:
                raise ValueError(f"unknown: {text[end : piece.start()]!r}")
            end = piece.end()
            private, number, command, control, character = piece.groups()
            if character:
                self._put(character)
            elif control:
                self._control(control)
            else:
                self._command(private, number, command)
        if end != len(text):
            raise ValueError(f"unknown: {text[end:]!r}")

    def _put(self, character: str) -> None:
        if self._column == self.width:
            self._control("\r")
            self._control("\n")
        row = self._rows[self._row]
        row += " " * (self._column + 1 - len(row))
        row[self._column] = character
        self._column += 1

    def _control(self, control: str) -> None:
        if control == "\r":
            self._column = 0
            return
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append([])

    def _command(self, private: str, number: str, command: str) -> None:
        match private, command:
            case "?", "h" | "l":
                assert number == "25", number
                self.cursor = command == "h"
            case "", "m":
                # Bold, dim and the like stay with NO_COLOR; 3x and 9x are colours.
                self.colours += bool(re.search(r"(^|;)[39]\d", number))
            case "", "A":
                self._row = max(0, self._row - int(number or 1))
            case "", "K":
                assert number == "2", number
                self._rows[self._row] = []
            case _:
                raise ValueError(f"unknown: ESC[{private}{number}{command}")
