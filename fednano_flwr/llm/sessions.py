"""Clients' training of the LoRA inside the language model: a session each, for one round.

A session has a copy of the LoRA and an AdamW of its own. Its steps are numbered. A step's gradient
waits until the next step, or the end, brings the factor by which the client has clipped: so a step
that is asked for again is computed again with the same parameters, and changes nothing twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednano_flwr.adapters.product import is_part
from fednano_flwr.exchange.at_host import HostLora, LoraPlan, SessionResult, Turn
from fednano_flwr.exchange.errors import RefusalError, SessionGoneError
from fednano_flwr.exchange.protocol import NOT_FINITE_ADVICE
from fednano_flwr.models.lora import LoraPlaces

WAITING = torch.device("cpu")
"""Where a session is while another one computes."""
MB = 2**20
IDLE_SECONDS = 120.0
"""A session that was not used for so long may be that of a client that is gone."""


@dataclass(frozen=True)
class _Waiting:
    """A step's gradient, of the cross-entropy alone, until its factor is known."""

    turn: Turn
    gradient: Sequence[Tensor]


class Session:
    """One client's training in one round.

    Args:
        parameters: its copy of the LoRA, by name.
        plan: how it is trained.

    Attributes:
        parameters: by name.
        trained: those that a step changes, by name.
        number: of the step that the parameters are ready for.
        used: when it last was, by `time.monotonic`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], plan: LoraPlan) -> None:
        self.parameters, self.plan = parameters, plan
        self.trained = {
            name: parameter.requires_grad_(True)
            for name, parameter in parameters.items()
            if is_part(name, plan.factor)
        }
        self.number, self.used = 1, time.monotonic()
        start = [parameter.detach().clone() for parameter in self.trained.values()]
        self._start = start if plan.proximal_mu else []
        self._squares = [torch.zeros_like(one) for one in start] if plan.fisher else []
        self._measured = 0
        self._waiting: _Waiting | None = None
        self._optimizer = torch.optim.AdamW(
            list(self.trained.values()), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )

    def begin(self, turn: Turn) -> None:
        """Make the parameters ready for a step: the gradient of the one before is used.

        Raises:
            RefusalError: it is neither the latest step nor the next one.
        """
        if turn.number == self.number:
            return
        if turn.number != self.number + 1 or self._waiting is None:
            raise RefusalError(f"step {turn.number} of a session that is at step {self.number}")
        self._use(self._waiting, turn.factor)
        self._waiting, self.number = None, turn.number

    def computed(self, turn: Turn, gradient: Sequence[Tensor]) -> Tensor:
        """Keep a step's gradient of the trained parameters; returns its squared norm, float64.

        Raises:
            RefusalError: the session is at another step.
            ValueError: it is not finite.
        """
        if turn.number != self.number:
            raise RefusalError(f"step {turn.number} of a session that is at step {self.number}")
        if not all(bool(one.isfinite().all()) for one in gradient):
            raise ValueError(
                f"the gradient of the LoRA at the host is not finite: {NOT_FINITE_ADVICE}"
            )
        self._waiting = _Waiting(turn, gradient)
        squares = [one.double().square().sum().cpu() for one in self._pulled(gradient)]
        return torch.stack(squares).sum()

    def result(self) -> SessionResult:
        """What the training has led to, on the CPU."""
        theta = {name: value.detach().cpu() for name, value in self.parameters.items()}
        if not self._measured:
            return SessionResult(theta)
        pairs = zip(self.trained, self._squares, strict=True)
        return SessionResult(theta, {n: (s / self._measured).float().cpu() for n, s in pairs})

    def move(self, devices: Mapping[str, torch.device] | None) -> None:
        """Bring all tensors to their layers' devices, or to where sessions wait."""
        for name, parameter in self.parameters.items():
            parameter.data = parameter.data.to(devices[name] if devices else WAITING)
        for index, (name, trained) in enumerate(self.trained.items()):
            device = devices[name] if devices else WAITING
            state = self._optimizer.state[trained]
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    state[key] = state[key].to(device)
            for kept in (self._start, self._squares):
                if kept:
                    kept[index] = kept[index].to(device)
        if self._waiting:
            moved = [
                one.to(devices[name] if devices else WAITING)
                for name, one in zip(self.trained, self._waiting.gradient, strict=True)
            ]
            self._waiting = _Waiting(self._waiting.turn, moved)

    def _pulled(self, gradient: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradient with that of the proximal term, μ (θ − θ_round)."""
        if not self._start:
            return gradient
        triples = zip(gradient, self.trained.values(), self._start, strict=True)
        return [g + self.plan.proximal_mu * (p.detach() - start) for g, p, start in triples]

    def _use(self, waiting: _Waiting, factor: float) -> None:
        if waiting.turn.measures and self._squares:
            for square, one in zip(self._squares, waiting.gradient, strict=True):
                square += one**2
            self._measured += 1
        if waiting.turn.updates:
            pulled = self._pulled(waiting.gradient)
            for parameter, one in zip(self.trained.values(), pulled, strict=True):
                parameter.grad = one if factor == 1 else one * factor
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)


class Sessions:
    """The sessions of a host's clients, one each; for one thread.

    Args:
        places: of the LoRA in the language model.
        limit: how many there may be.
        memory: bytes of all of them.
    """

    def __init__(self, places: LoraPlaces, limit: int, memory: int) -> None:
        self._places, self._limit, self._memory = places, limit, memory
        self._open: dict[bytes, tuple[int, Session]] = {}  # used longest ago first
        self._near: Session | None = None  # which is where the layers are
        self._merged: tuple[HostLora, Mapping[str, nn.Parameter]] | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def nbytes(self) -> int:
        """Of all sessions."""
        return sum(session_bytes(s.parameters, s.plan) for _, s in list(self._open.values()))

    def begin(self, owner: bytes, lora: HostLora) -> int:
        """A new session in the place of the owner's earlier one; returns its number.

        Where there is no room, one that has not been used for `IDLE_SECONDS` gives its up: its
        client trains the round anew if it is still there. Without any such, the number is 0.

        Raises:
            RefusalError: nobody trains in this phase, or there is no room for a single session.
        """
        if lora.plan is None:
            raise RefusalError("the LoRA inside the language model is not trained now")
        self._forget(owner)
        if not self._has_room(session_bytes(lora.values, lora.plan)):
            return 0
        session = Session(self._places.placed(lora.values), lora.plan)
        number = secrets.randbits(62) + 1
        self._open[owner] = number, session
        self._come_near(session)
        return number

    def turn(self, owner: bytes, turn: Turn) -> Session:
        """The session of a step, ready for it, its parameters in the language model.

        Raises:
            SessionGoneError: the owner has no session of this number.
            RefusalError: it is not this step's turn.
        """
        number, session = self._open.get(owner, (0, None))
        if session is None or number != turn.session:
            raise SessionGoneError(f"session {turn.session} is not here any more")
        session.used = time.monotonic()
        self._open[owner] = self._open.pop(owner)  # the latest
        self._come_near(session)
        session.begin(turn)
        self._places.use(session.parameters)
        return session

    def end(self, owner: bytes, turn: Turn) -> SessionResult:
        """End a session after its last step; `turn` is the one that would be next.

        Raises:
            SessionGoneError, RefusalError: as `turn`.
        """
        result = self.turn(owner, turn).result()
        self._forget(owner)
        return result

    def use(self, lora: HostLora) -> None:
        """Compute with a merged LoRA, which no call changes."""
        if self._merged is None or self._merged[0] is not lora:
            self._merged = lora, self._places.placed(lora.values)
        self._places.use(self._merged[1])

    def clear(self) -> None:
        """Forget all sessions: their round is over."""
        self._open.clear()
        self._near = None

    def _come_near(self, session: Session) -> None:
        """Have this session where the layers are, and the one that was there wait.

        A graph of that one stays good: it needs the parameters again for its gradient alone.
        """
        if (left := self._near) is not session:
            if left is not None:
                left.move(None)
            session.move(self._places.devices)
            self._near = session

    def _has_room(self, needed: int) -> bool:
        """Whether there is room for so many bytes, once idle sessions have given theirs up."""
        while reason := self._full(needed):
            if not self._open:
                raise RefusalError(f"no room for a session of {needed / MB:.0f} MB: {reason}")
            oldest, (_, session) = next(iter(self._open.items()))
            if session.used > time.monotonic() - IDLE_SECONDS:
                return False
            self._forget(oldest)
        return True

    def _full(self, needed: int) -> str:
        """Why there is no room now for a session of so many bytes; "" if there is."""
        import psutil  # a host whose LLM has no LoRA does without

        if len(self._open) >= self._limit:
            return f"the host keeps {self._limit} (llm.max-clients)"
        if self.nbytes + needed > self._memory:
            return f"the host keeps {self._memory / MB:.0f} MB (llm.session-memory-mb)"
        if needed > (free := psutil.virtual_memory().available):
            return f"the host has {free / MB:.0f} MB of free memory"
        return ""

    def _forget(self, owner: bytes) -> None:
        _, session = self._open.pop(owner, (0, None))
        if session is not None and session is self._near:
            self._near = None


def session_bytes(values: Mapping[str, Tensor], plan: LoraPlan) -> int:
    """Memory of a session: the LoRA, and of what is trained AdamW's two moments, a gradient,
    and, where they are needed, where it began and squared gradients."""
    whole = sum(value.nbytes for value in values.values())
    trained = sum(value.nbytes for name, value in values.items() if is_part(name, plan.factor))
    return whole + trained * (3 + bool(plan.proximal_mu) + plan.fisher)
