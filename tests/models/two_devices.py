"""A host over two devices without values: shapes and devices of every operation are checked.

    python tests/models/two_devices.py CHECKPOINT

PyTorch's fake tensors refuse an operation whose arguments lie on different devices, as a GPU would.
The second device is an empty backend, so this runs in a process of its own.
"""

import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.host_options import HostOptions
from fednano_flwr.models.llm_half import load_llm_half

if __name__ == "__main__":
    from pathlib import Path

    from tests.models.test_host_options import questions
    from tests.models.test_placement import on_meta, parts

    torch.set_num_threads(1)
    backend_registration._setup_privateuseone_for_python_backend("other")
    places = parts(on_meta(Path(sys.argv[1])))
    layers = [name for name in places if name.rpartition(".")[2] == "1"]
    for far in layers:
        places[far] = "other:0"
    with FakeTensorMode(allow_non_fake_inputs=True):
        half = load_llm_half(sys.argv[1], options=HostOptions(device_map=places))
        seen = {}
        for name, module in half.get_submodule("_host").named_modules():
            if name in places:
                module.register_forward_hook(
                    lambda module, args, output, name=name: seen.__setitem__(name, output)
                )
        inputs, labels = questions(half)
        loss, gradient = FrozenLLM(half).step(inputs, labels)
