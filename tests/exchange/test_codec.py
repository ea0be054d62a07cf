"""What the wire keeps of a tensor, dtype by dtype, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fednano_flwr.base.int8 import BLOCK
from fednano_flwr.edge.questions import Question, next_token_labels
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import IGNORE, Layout
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 70), (4, 0), (0, 4), (2, 0, 3)]


def sent(tensor: Tensor, dtype: str) -> Tensor:
    """What the other side has, through serialized bytes."""
    return codec.decode(pb.Tensor.FromString(codec.encode(tensor, dtype).SerializeToString()))


def magnitudes() -> Tensor:
    """Normal numbers times 10^-7 to 10^4, row by row."""
    numbers = torch.randn(12, 130, generator=torch.Generator().manual_seed(0))
    return numbers * torch.logspace(-7, 4, 12)[:, None]


@pytest.mark.parametrize("dtype", codec.NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    back = sent(tensor, dtype)
    assert back.shape == tensor.shape
    assert (back - tensor).abs().max() < 0.02 if tensor.numel() else back.numel() == 0


@pytest.mark.parametrize("dtype", codec.NAMES)
def test_memory_order_does_not_matter(dtype: str) -> None:
    tensor = torch.randn(90, 70)
    strided = torch.randn(9, 200, 2)[:, ::2, 0]
    for view in (tensor.T, strided):
        assert torch.equal(sent(view, dtype), sent(view.contiguous(), dtype))


def test_float32_is_exact_and_bfloat16_keeps_two_to_the_minus_8_of_a_number() -> None:
    numbers = magnitudes()
    assert torch.equal(sent(numbers, "float32"), numbers)
    assert ((sent(numbers, "bfloat16").float() - numbers).abs() <= 2**-8 * numbers.abs()).all()


def test_float16_keeps_two_to_the_minus_11_and_less_of_small_numbers() -> None:
    numbers = magnitudes()
    error = (sent(numbers, "float16").float() - numbers).abs()
    bound = (2**-11 * numbers.abs()).clamp(min=2**-25)
    assert (error <= bound).all()
    assert (error > 2**-11 * numbers.abs()).any()  # below 6e-5 the step no longer shrinks


def test_int8_keeps_half_a_step_of_its_block() -> None:
    numbers = magnitudes()  # no outliers
    error = (sent(numbers, "int8") - numbers).abs()
    for start in range(0, numbers.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        largest = numbers[:, block].abs().amax(1, keepdim=True)
        assert (error[:, block] <= 1.004 * largest / 254).all()


def test_int8_takes_little_more_than_a_byte_a_number() -> None:
    numbers = torch.randn(100, 1024, generator=torch.Generator().manual_seed(0))
    assert len(codec.encode(numbers, "int8").SerializeToString()) < 1.033 * numbers.numel()
    numbers[:, ::100] *= 300
    assert len(codec.encode(numbers, "int8").SerializeToString()) < 1.1 * numbers.numel()


@pytest.mark.parametrize(("dtype", "number"), [("float16", 7e4), ("bfloat16", 3.4e38)])
def test_an_overflow_is_refused_and_not_sent_as_infinity(dtype: str, number: float) -> None:
    with pytest.raises(ValueError, match=rf"{dtype} holds numbers up to .*exchange\.dtype"):
        codec.encode(torch.tensor([0.0, -number, float("nan"), float("inf")]), dtype)


def test_the_largest_float16_is_sent_and_infinity_stays_infinity() -> None:
    numbers = torch.tensor([65504.0, -65519.0, float("inf"), float("-inf")])
    expected = [65504.0, -65504.0, float("inf"), float("-inf")]
    assert sent(numbers, "float16").tolist() == expected


def test_numbers_int8_cannot_hold_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"finite.*learning-rate"):
        codec.encode(torch.tensor([1.0, float("nan")]), "int8")


def outlying() -> pb.Tensor:
    """(3, 100) int8 with two outliers in a row."""
    numbers = torch.ones(3, 100)
    numbers[1, 5] = numbers[1, 70] = 400.0
    message = codec.encode(numbers, "int8")
    assert len(message.places) == 8
    return message


def little_endian(*places: int) -> bytes:
    return b"".join(place.to_bytes(4, "little") for place in places)


BROKEN: dict[str, tuple[Callable[[pb.Tensor], dict[str, object]], str]] = {
    "data too short": (lambda m: {"data": m.data[:-1]}, "299 bytes do not hold int8"),
    "no scales": (lambda m: {"scales": b""}, "0 bytes do not hold the scales"),
    "a scale too many": (lambda m: {"scales": m.scales + b"\0\0"}, "14 bytes do not hold the s"),
    "half a place": (lambda m: {"places": m.places[:-1]}, "7 bytes do not hold 1 places"),
    "places without values": (lambda m: {"outliers": b""}, "0 bytes do not hold 2 outliers"),
    "values without places": (lambda m: {"places": b""}, "4 bytes do not hold 0 outliers"),
    "a place outside": (lambda m: {"places": little_endian(105, 300)}, "do not ascend within"),
    "a place above 2³¹": (lambda m: {"places": little_endian(2**32 - 1, 1)}, "do not ascend"),
    "a descending place": (lambda m: {"places": little_endian(170, 105)}, "do not ascend within"),
    "a place twice": (lambda m: {"places": little_endian(105, 105)}, "do not ascend within"),
    "a scale that is not a number": (lambda m: {"scales": b"\xff\xff" * 6}, "not finite"),
    "an infinite scale": (lambda m: {"scales": b"\x80\x7f" * 6}, "not finite"),
    "a scale that overflows": (lambda m: {"scales": b"\x7f\x7f" * 6}, "not finite"),
    "an infinite outlier": (lambda m: {"outliers": b"\x80\x7f" * 2}, "not finite"),
    "another shape": (lambda m: {"shape": [100, 3]}, "the scales of shape"),
    "a large shape": (lambda m: {"shape": [2**16, 2**16]}, "300 bytes do not hold"),
    "a vast shape": (lambda m: {"shape": [2**32 - 1, 2**32 - 1]}, "at most 1099511627776 numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_malformed_int8_is_a_value_error_that_says_what_is_wrong(case: str) -> None:
    message = outlying()
    change, complaint = BROKEN[case]
    whole = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    with pytest.raises(ValueError, match=complaint):
        codec.decode(pb.Tensor(**{**whole, **change(message)}))


COSINE = {"float32": 1 - 1e-9, "bfloat16": 0.9995, "float16": 0.99999, "int8": 0.999}


@pytest.mark.parametrize("dtype", COSINE)
def test_a_step_over_the_wire_gives_nearly_float32s_gradient(
    dtype: str, host: FrozenLLM, questions: list[Question]
) -> None:
    rows = sum(len(question.ids) for question in questions)
    embeds = torch.randn(rows, 48, generator=torch.Generator().manual_seed(0))
    embeds[:, 7] *= 300  # a channel as real LLMs have them
    inputs = EmbeddingInputs(embeds, Layout(tuple(len(question.ids) for question in questions)))
    labels = next_token_labels(questions, IGNORE)
    loss, (gradient,) = host.step(inputs, labels)
    scores = host.score(inputs, torch.arange(rows), torch.arange(64))
    with serve(host) as address, RemoteLLM(address, dtype=dtype) as remote:
        before = remote.traffic.bytes_up
        far_loss, (far,) = remote.step(inputs, labels)
        up = remote.traffic.bytes_up - before
        far_scores = remote.score(inputs, torch.arange(rows), torch.arange(64))
    assert far.dtype == torch.float32
    assert far_loss == pytest.approx(loss, rel=1e-3)
    pair = (far.flatten().double(), gradient.flatten().double())
    assert F.cosine_similarity(*pair, dim=0) > COSINE[dtype]
    assert F.cosine_similarity(far_scores.flatten(), scores.flatten(), dim=0) > 0.999
    if dtype == "int8":
        assert up < 1.4 * embeds.numel()
