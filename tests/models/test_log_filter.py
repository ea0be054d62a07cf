"""What libraries say is left out no further than it has to be."""

from __future__ import annotations

import logging

import pytest

import fednano_flwr.edge  # noqa: F401


def test_one_line_of_bitsandbytes_is_left_out_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "none")
    log.warning("something else")
    logging.getLogger("bitsandbytes").warning("kernels-community")
    assert caplog.messages == ["something else", "kernels-community"]
