"""The learning rate of a round."""

from __future__ import annotations

import math

from fednano_flwr.config import RunConfig


def learning_rate(config: RunConfig, server_round: int) -> float:
    """Of all steps in round `server_round` = 1 … R.

    After w rounds of warm-up, at k / (w + 1) of the full rate in round k, it is the full rate in
    round w + 1 and the share e of it in round R. Between them, with t from 0 to 1:
    linear 1 − (1 − e) t; cosine e + (1 − e) (1 + cos π t) / 2     (Loshchilov & Hutter, ICLR 2017)
    """
    full, warm_up = config.learning_rate, config.warm_up_rounds
    if server_round <= warm_up:
        return full * server_round / (warm_up + 1)
    if config.learning_rate_schedule == "constant":
        return full
    t = (server_round - warm_up - 1) / max(1, config.num_server_rounds - warm_up - 1)
    left = 1 - t if config.learning_rate_schedule == "linear" else (1 + math.cos(math.pi * t)) / 2
    end = config.learning_rate_end
    return full * (end + (1 - end) * left)
