"""The attacks' mathematics, by cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.audit.attack import (
    Shares,
    answers_of_gradient,
    candidates,
    in_every,
    most_frequent,
    nearest,
    shares,
)
from fednano_flwr.adapters.product import Factors

TABLE = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))


def test_rows_as_they_are_sent_are_all_read() -> None:
    truth = torch.tensor([3, 49, 0, 3])
    for at_once in (7, 50, 1000):
        chunks = candidates(lambda ids: TABLE[ids], 50, None, 1.0, at_once=at_once)
        assert torch.equal(nearest(TABLE[truth], chunks, rows_at_once=3), truth)


def test_the_adapter_is_taken_into_account() -> None:
    factors = Factors(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [2.0]]))
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    (rows,) = candidates(lambda ids: table[ids], 2, factors, 0.5)
    assert rows.tolist() == [[1.0, 1.0], [0.0, 1.0]]  # e + 0.5 · B(A e), A e = e_0


def test_of_equal_candidates_the_first_is_guessed_also_across_chunks() -> None:
    same = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert nearest(torch.tensor([[0.0, 1.0]]), [same, same]).tolist() == [1]


def test_little_noise_reads_all_and_much_noise_falls_to_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(50, (4000,), generator=generator)
    noise = torch.randn(4000, 16, generator=generator)
    read = [
        (nearest(TABLE[truth] + sigma * noise, [TABLE]) == truth).float().mean().item()
        for sigma in (0.0, 0.1, 1.0, 1000.0)
    ]
    assert read[0] == read[1] == 1.0
    assert 0.1 < read[2] < 0.95
    assert read[3] == pytest.approx(1 / 50, abs=0.01)  # 0.0022 is one deviation


def test_the_mean_of_many_observations_is_read_where_one_is_not() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.randint(50, (500,), generator=generator)
    seen = [TABLE[truth] + 2 * torch.randn(500, 16, generator=generator) for _ in range(64)]
    once, often = (
        (nearest(rows, [TABLE]) == truth).float().mean()
        for rows in (seen[0], torch.stack(seen).mean(0))
    )
    assert once < 0.5 and often > 0.95


def test_the_gradient_of_the_logits_shows_the_answers() -> None:
    logits = (3 * torch.randn(6, 20, generator=torch.Generator().manual_seed(3))).requires_grad_()
    labels = torch.tensor([0, 19, 5, 5, 7, 2])
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    assert torch.equal(answers_of_gradient(gradient), labels)


def test_shares_count_tokens_content_and_kinds() -> None:
    truth, guesses = torch.tensor([9, 9, 9, 9, 1, 2]), torch.tensor([9, 9, 9, 9, 1, 3])
    assert shares(guesses, truth, {9}) == Shares(
        all=pytest.approx(5 / 6), content=0.5, distinct=pytest.approx(2 / 3)
    )
    assert shares(truth[:4], truth[:4], {9}).content is None


def test_the_blind_guess_is_the_most_frequent_token() -> None:
    truth = torch.tensor([9, 9, 9, 9, 1, 1, 2])
    assert most_frequent(truth, {9}) == Shares(
        all=pytest.approx(4 / 7), content=pytest.approx(2 / 3), distinct=pytest.approx(1 / 3)
    )


def test_the_template_is_what_all_questions_share() -> None:
    texts = [torch.tensor([1, 2, 3]), torch.tensor([3, 4, 1])]
    assert in_every(texts) == {1, 3}
    assert in_every(texts[:1]) == set()
