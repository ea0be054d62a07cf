"""Local work of one client: training and the Fisher diagonal.

While the host works on one batch, the frozen part of the next is prepared in the background.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fednano_flwr.adapters.site import named_trainable
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import RunConfig
from fednano_flwr.edge.generation import not_finite, option_scores
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.prefetch import prefetch
from fednano_flwr.edge.questions import (
    NO_LIMITS,
    Limits,
    Question,
    next_token_labels,
    teacher_forced,
)
from fednano_flwr.exchange.exchange import Turns
from fednano_flwr.exchange.protocol import IGNORE, LLM, FrozenBatch

CLIP_EPSILON = 1e-6
"""That of `torch.nn.utils.clip_grad_norm_`."""


@dataclass(frozen=True)
class TrainingPlan:
    """Hyper-parameters of one round's local training; the names are the run config's.

    Attributes:
        limits: of the host.
    """

    local_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    proximal_mu: float = 0.0
    limits: Limits = NO_LIMITS

    @classmethod
    def of(
        cls, config: RunConfig, server_round: int, limits: Limits, proximal_mu: float = 0.0
    ) -> TrainingPlan:
        """The plan of one round of a run."""
        return cls(
            config.local_epochs,
            config.batch_size,
            learning_rate(config, server_round),
            config.weight_decay,
            config.max_grad_norm,
            proximal_mu,
            limits,
        )


@dataclass(frozen=True)
class TrainingResult:
    """What local training leaves beside the adapters themselves.

    Attributes:
        loss: mean cross-entropy over all questions seen, each before its own step, without the
            proximal term.
        fisher: mean squared batch gradient of every parameter, where it was asked for.
    """

    loss: float
    fisher: dict[str, Tensor] | None


def train(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    plan: TrainingPlan,
    seed: int,
    running_fisher: bool = False,
    last_epoch_only: bool = False,
    session: Turns | None = None,
) -> TrainingResult:
    """Train the adapters on the client's questions with AdamW.

    Args:
        plan: with `proximal_mu` above 0, parameters are held to where they are now.
        running_fisher: keep the mean of the squared gradients of the cross-entropy met on the way
            (before clipping): a Fisher diagonal that costs no extra pass.
        last_epoch_only: of the last epoch's, nearer to the trained adapters.
        session: of the LLM, where it trains a LoRA of its own in the same steps.

    Raises:
        FloatingPointError: a loss or a gradient is not finite.
    """
    parameters = named_trainable(edge.adapters)
    rate, decay = plan.learning_rate, plan.weight_decay
    # Nothing is trained here where the only site is inside the language model.
    optimizer = (
        torch.optim.AdamW(parameters.values(), rate, weight_decay=decay) if parameters else None
    )
    anchors = [parameter.detach().clone() for parameter in parameters.values()]
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    shuffle = torch.Generator().manual_seed(derive_seed(Purpose.ORDER, seed))
    total, seen, squared = 0.0, 0, 0
    first = (plan.local_epochs - 1) * len(questions) if last_epoch_only else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(Purpose.DROPOUT, seed))
        edge.adapters.train()
        for batch, frozen in embedded(edge, llm, _shuffled(questions, plan, shuffle)):
            edge.adapters.zero_grad(set_to_none=True)
            if session is not None:
                session.measures = running_fisher and seen >= first
            total += backward(edge, llm, batch, frozen) * len(batch)
            if running_fisher and seen >= first:
                add_squared_gradients(squares, parameters)
                squared += 1
            seen += len(batch)
            if plan.proximal_mu and parameters:
                proximal_term(parameters.values(), anchors, plan.proximal_mu).backward()
            clip(parameters.values(), plan.max_grad_norm, session)
            if optimizer is not None:
                optimizer.step()
    fisher = {name: square / squared for name, square in squares.items()} if squared else None
    return TrainingResult(total / (plan.local_epochs * len(questions)), fisher)


def clip(parameters: Iterable[nn.Parameter], most: float, session: Turns | None) -> None:
    """Scale all gradients of a step down to the norm `most`, those at the host included."""
    if session is None:
        torch.nn.utils.clip_grad_norm_(parameters, most)
        return
    own = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = session.squares + sum(float(one.double().square().sum()) for one in own)
    session.factor = min(1.0, most / (math.sqrt(squares) + CLIP_EPSILON))
    for one in own:
        one.mul_(session.factor)


def learning_rate(config: RunConfig, server_round: int, full: float = 0.0) -> float:
    """The learning rate of all steps in round `server_round` = 1 … R.

    After w rounds of warm-up, at k / (w + 1) of the full rate in round k, it is the full rate in
    round w + 1 and the share e of it in round R. Between them, with t from 0 to 1:
    linear 1 − (1 − e) t; cosine e + (1 − e) (1 + cos π t) / 2     (Loshchilov & Hutter, ICLR 2017)

    Args:
        full: the full rate; 0 for `learning-rate`.
    """
    full, warm_up = full or config.learning_rate, config.warm_up_rounds
    if server_round <= warm_up:
        return full * server_round / (warm_up + 1)
    if config.learning_rate_schedule == "constant":
        return full
    t = (server_round - warm_up - 1) / max(1, config.num_server_rounds - warm_up - 1)
    left = 1 - t if config.learning_rate_schedule == "linear" else (1 + math.cos(math.pi * t)) / 2
    end = config.learning_rate_end
    return full * (end + (1 - end) * left)


def proximal_term(parameters: Iterable[Tensor], anchors: Iterable[Tensor], mu: float) -> Tensor:
    """(μ / 2) Σ ‖θ − θ_round‖², its gradient μ (θ − θ_round): FedProx (Li et al., 2020, eq. 2).

    Args:
        parameters: θ, differentiable.
        anchors: θ_round, where the round's training started; shapes as in `parameters`.
        mu: μ > 0.
    """
    distances = [(p - a).square().sum() for p, a in zip(parameters, anchors, strict=True)]
    return mu / 2 * sum(distances[1:], distances[0])


def fisher_diagonal(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    batch_size: int,
    drawn_with: int | None = None,
    limits: Limits = NO_LIMITS,
    session: Turns | None = None,
) -> dict[str, Tensor]:
    """Fisher diagonal: F = mean over batches of (∂ loss / ∂ θ)².

    The gradient is that of the batch's mean loss; with `batch_size` 1 this is the per-sample
    Fisher information, the empirical one at the true answers (Kunstner et al., NeurIPS 2019).

    Args:
        drawn_with: None for the true answers; else a seed, and the answers are drawn from the
            model's own distribution over each question's options.
        limits: of the host.
        session: as in `train`; the host estimates the diagonal of its own LoRA.

    Raises:
        ValueError: answers are to be drawn for a question without options.
        FloatingPointError: a loss, a gradient or a logit is not finite.
    """
    parameters = named_trainable(edge.adapters)
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    generator = None if drawn_with is None else torch.Generator().manual_seed(drawn_with)
    edge.adapters.eval()
    if session is not None:
        session.updates, session.measures = False, True
    steps = 0
    for batch, frozen in embedded(edge, llm, batches(questions, batch_size, limits)):
        edge.adapters.zero_grad(set_to_none=True)
        if generator is not None:
            batch = with_drawn_answers(edge, llm, batch, frozen, generator)
        backward(edge, llm, batch, frozen)
        add_squared_gradients(squares, parameters)
        steps += 1
    edge.adapters.zero_grad(set_to_none=True)
    return {name: square / steps for name, square in squares.items()}


@torch.no_grad()
def with_drawn_answers(
    edge: NanoEdge,
    llm: LLM,
    batch: Sequence[Question],
    frozen: FrozenBatch,
    generator: torch.Generator,
) -> list[Question]:
    """The questions of a batch, each with an option drawn as the model finds it likely.

    Raises:
        ValueError: a question has no options.
        FloatingPointError: a logit is not finite.
    """
    if not all(question.options for question in batch):
        raise ValueError(
            'strategy.fisher-estimate = "pass-model" draws among options, and this shard has '
            'questions with a free answer; use "pass"'
        )
    drawn = []
    for question, scores in zip(batch, option_scores(edge, llm, batch, frozen), strict=True):
        likely = scores.float().cpu().softmax(0)
        choice = int(torch.multinomial(likely, 1, generator=generator))
        drawn.append(replace(question, answer=(question.options[choice],)))
    return drawn


def embedded(
    edge: NanoEdge, llm: LLM, groups: Iterable[list[Question]]
) -> Iterator[tuple[list[Question], FrozenBatch]]:
    """Teacher-forced batches with their frozen part, made while the batch before is worked on.

    What the host lacks of it is sent meanwhile as well.
    """

    def prepare(batch: list[Question]) -> tuple[list[Question], FrozenBatch]:
        frozen = edge.embed(batch, teacher_forced(batch))
        llm.prepare(frozen)
        return batch, frozen

    return prefetch(groups, prepare)


def backward(edge: NanoEdge, llm: LLM, batch: list[Question], frozen: FrozenBatch) -> float:
    """Gradients of a batch's mean loss into the adapters' `.grad`; returns the loss.

    Args:
        frozen: the teacher-forced batch, embedded.

    Raises:
        FloatingPointError: the loss or a gradient is not finite.
    """
    loss = llm.loss(edge.adapt(frozen), next_token_labels(batch, IGNORE))
    if not torch.isfinite(loss):
        raise not_finite(f"the loss is {loss.item()}", batch)
    if loss.requires_grad:  # a batch of text takes no part in an image adapter alone
        loss.backward()
    for name, parameter in named_trainable(edge.adapters).items():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise not_finite(f"the gradient of {name} is not finite", batch)
    return loss.item()


def add_squared_gradients(squares: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    """squares += grad², a parameter that took no part in the loss counting as zero."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            squares[name] += parameter.grad**2


def _shuffled(
    questions: Sequence[Question], plan: TrainingPlan, generator: torch.Generator
) -> Iterator[list[Question]]:
    """All epochs' batches, each epoch in an order of its own."""
    for _ in range(plan.local_epochs):
        order = torch.randperm(len(questions), generator=generator).tolist()
        yield from batches((questions[i] for i in order), plan.batch_size, plan.limits)


def batches(
    questions: Iterable[Question], size: int, limits: Limits = NO_LIMITS
) -> Iterator[list[Question]]:
    """Consecutive batches of `size` questions; the last one, and long ones, may be smaller.

    A batch ends before the question with which it would be too large for a request.
    """
    batch: list[Question] = []
    tokens = 0
    for question in questions:
        own = limits.tokens(question)
        if batch and (len(batch) == size or 0 < limits.request < tokens + own):
            yield batch
            batch, tokens = [], 0
        batch.append(question)
        tokens += own
    if batch:
        yield batch
