"""Where the answers of a training step stay: `exchange.labels-at`.

At the server, a step is one round trip: batch and label ids up, loss and gradient down. At the
client, it is two: the host returns the logits at the answers' positions, the client computes the
loss and sends its gradient with respect to them, and the host carries that on to its inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano_flwr.exchange.protocol import (
    IGNORE,
    Gradient,
    GraphGoneError,
    HostRefusedError,
    Inputs,
    LLMService,
)

Step = Callable[[Inputs, Tensor], tuple[float, Gradient]]
TRIES = 4


def stepper(service: LLMService, labels_at: str) -> Step:
    """How a step is made: inputs of N tokens and labels (N,) to the loss and its gradient.

    Args:
        labels_at: "server" or "client".
    """
    if labels_at == "server":
        return service.step
    return lambda inputs, labels: step_in_two(service, inputs, labels)


def step_in_two(service: LLMService, inputs: Inputs, labels: Tensor) -> tuple[float, Gradient]:
    """As `LLMService.step`, the labels staying here.

    Raises:
        HostRefusedError: the host lost the first half several times.
    """
    positions = (labels.cpu() != IGNORE).nonzero().squeeze(1)
    answers = labels.cpu()[positions]
    for _ in range(TRIES):
        graph, logits = service.forward(inputs, positions)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = F.cross_entropy(leaf, answers)
        (gradient,) = torch.autograd.grad(loss, leaf)
        try:
            return loss.item(), service.backward(graph, gradient)
        except GraphGoneError:
            continue
    raise HostRefusedError(
        f"the LLM host forgot the first half of a step {TRIES} times before the second came: "
        'use exchange.labels-at = "server"'
    )
