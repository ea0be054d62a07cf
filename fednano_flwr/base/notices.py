"""What libraries say when they are imported, as far as it is of no use here."""

from __future__ import annotations

import logging


def hush_bitsandbytes() -> None:
    """Leave out one line of bitsandbytes, which PEFT imports wherever it is installed.

    On some CPUs it asks for the package `kernels`, which nothing here needs.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_not_of_kernels)


def _not_of_kernels(record: logging.LogRecord) -> bool:
    return "kernels-community" not in str(record.msg)
