"""A question's tokens as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.questions import next_token_labels
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.preview.pieces import pieces
from tests.families import every
from tests.models.test_families import samples_of


@pytest.mark.parametrize("family", every())
def test_pieces_have_all_tokens_and_the_loss_where_training_has_it(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    checkpoint = ModelCheckpoint(str(family_folder(family)))
    encoder = load_encoder(checkpoint)
    places = torch.tensor(sum(encoder.placeholders.values(), ()))
    for sample in samples_of(encoder):
        question = encoder.encode(sample)
        found = pieces(question, encoder)
        shown = [one for one in found if one.kind in encoder.placeholders]
        assert sum(one.tokens for one in found) == len(question.ids) + len(question.answer)
        assert sum(one.tokens for one in shown) == int(torch.isin(question.ids, places).sum())
        assert all(one.text == f"<{one.kind} × {one.tokens}>" for one in shown)
        labels = next_token_labels([question], IGNORE)
        assert sum(one.tokens for one in found if one.learned) == int((labels != IGNORE).sum())
        assert not any(one.learned for one in shown)
        text = "".join(one.text for one in found if one not in shown)
        words = re.findall(r"w\d+", sample.question)
        assert [word for word in re.findall(r"w\d+", text) if word in words][: len(words)] == words
