"""A checkpoint's two halves, cut, loaded and checked."""

import logging


def _not_of_kernels(record: logging.LogRecord) -> bool:
    """bitsandbytes, which PEFT and transformers import, asks on some CPUs for `kernels`: unused."""
    return "kernels-community" not in str(record.msg)


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_not_of_kernels)
