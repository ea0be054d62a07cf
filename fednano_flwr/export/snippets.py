"""The code in a model card: it needs transformers (and PEFT), and nothing of this project."""

from __future__ import annotations

from fednano_flwr.models.families import FAMILIES

LOAD_MERGED = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

FOLDER = "."  # this folder, or its name on the hub
model = AutoModelForImageTextToText.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
"""

LOAD_ADAPTERS = '''\
from functools import wraps

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

FOLDER = "."  # this folder, or its name on the hub
BASE = "{base}"{remark}


class Site(nn.Linear):
    """The identity: a place for an adapter, without a weight of its own."""

    def __init__(self, width):
        nn.Module.__init__(self)
        self.in_features = self.out_features = width
        self.weight, self.bias = nn.Parameter(torch.empty(0), requires_grad=False), None

    def forward(self, features):
        return features


def adapt(model, folder):
    """Put the adapters behind the token embeddings and behind the connector."""
    embeddings = model.get_input_embeddings()
    width = embeddings.weight.shape[1]
    sites = nn.ModuleDict({{"image_adapter": Site(width), "text_adapter": Site(width)}})
    PeftModel.from_pretrained(sites, folder).to(model.device).eval()
    image, text = sites["image_adapter"], sites["text_adapter"]
    embeddings.register_forward_hook(lambda module, arguments, output: text(output))
    owner = getattr(model, "model", model)
    connector_output = owner.get_image_features

    @wraps(connector_output)  # generate() looks at its arguments' names
    def image_features(*arguments, **named):
        output = connector_output(*arguments, **named)
        found = output.pooler_output
        several = isinstance(found, (list, tuple))
        output.pooler_output = [image(one) for one in found] if several else image(found)
        return output

    owner.get_image_features = image_features
    return model


model = adapt(AutoModelForImageTextToText.from_pretrained(BASE), FOLDER)
processor = AutoProcessor.from_pretrained(BASE)
'''

_ASK_CHAT = """\
from PIL import Image

turn = [
    {{"type": "image", "image": Image.open("picture.png")}},
    {{"type": "text", "text": {prompt!r}}},
]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": turn}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
"""

_ASK_TEXT = """\
from PIL import Image

inputs = processor(
    images=Image.open("picture.png"),
    text={prompt!r},
    return_tensors="pt",
)
"""

_ANSWER = """\
written = model.generate(**inputs, do_sample=False, max_new_tokens={tokens})[0]
print(processor.decode(written[{start}:], skip_special_tokens=True))
"""


def ask(family: str, question: str, tokens: int) -> str:
    """Asking one question with a picture, as the run asked its own.

    Args:
        question: the user's turn (data/prompts.py).
        tokens: most that an answer may have.
    """
    if text := FAMILIES[family].processor_text:
        start = _ASK_TEXT.format(prompt=text.format(question))
    else:
        start = _ASK_CHAT.format(prompt=question)
    return start + _ANSWER.format(tokens=tokens, start='inputs["input_ids"].shape[1]')
