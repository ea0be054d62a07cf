"""A host over two devices without values: every operation's devices and shapes are checked.

    python -m tests.models.two_devices CHECKPOINT cpu other

PyTorch's fake tensors refuse an operation whose arguments lie on different devices, as a GPU would.
The second device is a backend that computes nothing, so this takes a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from fednano_flwr.models.checkpoint import ModelCheckpoint, on
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from tests.models.test_placement import on_meta, parts

OTHER = "other"


def shaped(
    self: ModelCheckpoint,
    names: Iterable[str],
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """`ModelCheckpoint.read` without values."""
    for name in names:
        filename, key = self.files[name]
        with safe_open(self.folder / filename, framework="pt") as file:
            shape = file.get_slice(key).get_shape()
        yield name, torch.empty(shape, dtype=dtype, device=on(device, name))


def devices(half: LLMHalf) -> dict[str, str]:
    """Where each part that the map names gives its result, in a step."""
    found: dict[str, str] = {}

    def record(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            found[name] = first.device.type

        return hook

    host = half.get_submodule("_host")
    for name in half.places:
        host.get_submodule(name).register_forward_hook(record(name))
    embeds = torch.randn(2, 9, half.hidden_size, device=half.device, requires_grad=True)
    beside = {}
    if half.family.position_axes:
        beside["position_ids"] = torch.arange(9).expand(3, 2, 9).to(half.device)
    if half.family.token_types:
        beside["token_type_ids"] = torch.zeros(2, 9, dtype=torch.long, device=half.device)
    rows, mask = torch.arange(3), torch.ones(2, 9, dtype=torch.bool)
    logits = half.logits(embeds, rows.to(half.device), mask.to(half.device), beside)
    (gradient,) = torch.autograd.grad(logits.sum(), embeds)
    assert logits.shape == (3, half.vocabulary) and logits.device == embeds.device
    assert gradient.shape == embeds.shape and gradient.device == embeds.device
    return found


def main(folder: Path, near: str, far: str) -> None:
    built = ModelCheckpoint(str(folder)).llm_tree()  # looks at values
    places = parts(on_meta(folder))
    for name in places:
        places[name] = far if name.endswith(("layers.1", "norm", "lm_head")) else near
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        mock.patch.object(ModelCheckpoint, "tree", built),
        mock.patch.object(ModelCheckpoint, "llm_tree", lambda self: built),
        mock.patch.object(ModelCheckpoint, "read", shaped),
        mock.patch.object(ModelCheckpoint, "fingerprint", ""),
        # Told apart by their addresses, of which fake tensors have one: a tied head stays unmoved.
        mock.patch("accelerate.big_modeling.find_tied_parameters", lambda model: []),
        torch.autograd.set_multithreading_enabled(False),  # another thread would compute for real
    ):
        for module in built.modules():
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, fake.from_tensor(value))
        half = load_llm_half(str(folder), device_map=places)
        found = devices(half)
        assert half.embed(torch.arange(2, device=half.device)).device.type == near
    assert found == {name: half.places[name].type for name in found}
    print(*(f"{name}: {device}" for name, device in sorted(found.items())), sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    backend_registration._setup_privateuseone_for_python_backend(OTHER)
    getattr(torch, OTHER).get_amp_supported_dtype = lambda: [torch.bfloat16]  # Gemma asks
    main(Path(sys.argv[1]), *sys.argv[2:4])
