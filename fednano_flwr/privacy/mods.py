"""Clipping at the client, by Flower's mods, where the run config says that clients clip."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable

from fednano_flwr.config import RunConfig
from fednano_flwr.rounds.compat import KEY_NORM_BIT

MODS = {"client-fixed": fixedclipping_mod, "client-adaptive": adaptiveclipping_mod}


def clip_as_asked(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Scale the reply's update down to the norm that came with the message.

    An update of zero stays as it is; Flower's mods would divide by its norm. They also want a reply
    to have all arrays of its message; one that has a part is compared with that part.

    Raises:
        ConfigError: the run config does not say whether to.
    """
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    kind = RunConfig.parse(context.run_config).privacy.dp
    if kind not in MODS:
        return reply
    sent, got = message.content.array_records["arrays"], reply.content.array_records["arrays"]
    message.content["arrays"] = ArrayRecord({key: sent[key] for key in got})
    if _is_zero(message, reply):
        if kind == "client-adaptive":
            reply.content.metric_records["metrics"][KEY_NORM_BIT] = 0
        return reply
    return MODS[kind](message, context, lambda *_: reply)


def _is_zero(message: Message, reply: Message) -> bool:
    sent = message.content.array_records["arrays"].to_numpy_ndarrays()
    got = reply.content.array_records["arrays"].to_numpy_ndarrays()
    return len(sent) == len(got) and all((a == b).all() for a, b in zip(sent, got, strict=True))
