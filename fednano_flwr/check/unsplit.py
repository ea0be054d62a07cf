"""The whole model with NanoAdapters inside it: what its two halves are compared with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

from fednano_flwr.edge.encoder import TEXT_TENSORS, QuestionEncoder
from fednano_flwr.edge.questions import Question
from fednano_flwr.models import skeleton
from fednano_flwr.models.families import Family

TYPES = {"token_type_ids", "mm_token_type_ids"}
TEXT = {"input_ids", "attention_mask", *TYPES}


class Unsplit:
    """A transformers model, called with what its processor makes of one question.

    Args:
        folder: of the checkpoint.
        dtype: "float32" or "float64".
    """

    def __init__(self, folder: Path, family: Family, dtype: str = "float32") -> None:
        self.family = family
        self.model = family.model_class.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True
        ).eval()
        self.model.requires_grad_(False)

    def next_logits(self, question: Question, encoder: QuestionEncoder) -> Tensor:
        """Logits (vocabulary,) after the question's prompt."""
        model, inputs = self._called(question, encoder)
        return model(**inputs).logits[0, -1]

    @torch.no_grad()
    def generate(
        self, question: Question, encoder: QuestionEncoder, tokens: int
    ) -> tuple[list[int], Tensor]:
        """The model's own greedy answer, `tokens` long, and the logits (tokens, vocabulary).

        Nothing ends it, and nothing of the checkpoint's generation config is used.
        """
        model, inputs = self._called(question, encoder)
        if model is self.model and self.family.host:
            model, inputs = self._host_called(inputs)
        model.generation_config = GenerationConfig()
        settings = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found = model.generate(**inputs, generation_config=settings)
        return found.sequences[0, -tokens:].tolist(), torch.cat(found.logits)

    @contextmanager
    def adapted(self, adapters: PeftModel) -> Iterator[None]:
        """Adapters on the token embeddings' and the connectors' outputs, while the block runs."""
        base, model = self.model.base_model, self.model
        with ExitStack() as undone:
            self._hook(undone, model.get_input_embeddings(), adapters.text_adapter)
            for modality in self.family.modalities_of(model.config):
                adapter = getattr(adapters, f"{modality}_adapter")
                names = self.family.outputs if modality == "image" else ("pooler_output",)
                method = f"get_{modality}_features"
                owner = base if hasattr(base, method) else model
                if hasattr(owner, method):
                    setattr(owner, method, _adapted(getattr(owner, method), adapter, names))
                    undone.callback(delattr, owner, method)
                else:  # its own forward calls the connector
                    self._hook(undone, base.multi_modal_projector, adapter)
            yield

    @staticmethod
    def _hook(undone: ExitStack, module: Any, adapter: Any) -> None:
        hook = module.register_forward_hook(lambda module, args, output: adapter(output))
        undone.callback(hook.remove)

    def _called(
        self, question: Question, encoder: QuestionEncoder
    ) -> tuple[Any, dict[str, Tensor]]:
        """What is called, and with what: the model with what its processor makes of the question.

        A model whose language model is one by itself may need a picture; without one its language
        model gets embeddings.
        """
        sample = question.sample
        tensors = encoder.tensors(sample, encoder.prompting.write(sample))
        known = inspect.signature(self.model.forward).parameters
        inputs = {key: tensors[key] for key in TEXT & tensors.keys() & known.keys()}
        none = torch.zeros_like(question.ids, dtype=torch.bool)
        if not sample.media and self.family.token_types:  # its processor leaves them out
            kinds = self.family.token_type_ids(none, len(none))
            assert kinds is not None
            inputs.update(dict.fromkeys(TYPES & known.keys(), kinds[None]))
        if sample.media or not self.family.host:
            others = TEXT_TENSORS.union(self.family.vision_keys)
            own = {key: value for key, value in tensors.items() if key not in others}
            for modality in sample.media:
                inputs |= skeleton.encoder_arguments(self.model, modality, own)
            return self.model, inputs
        embeds = self.model.get_input_embeddings()(inputs.pop("input_ids"))
        return self.model.get_submodule(self.family.host), inputs | {"inputs_embeds": embeds}

    def _host_called(self, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """The language model, and the embeddings that the whole model gives it.

        The `generate` of such a model may make features of its own, past the adapters.
        """
        host, seen = self.model.get_submodule(self.family.host), {}
        hook = host.register_forward_pre_hook(
            lambda module, args, given: seen.update(given), with_kwargs=True
        )
        self.model(**inputs)
        hook.remove()
        return host, {"inputs_embeds": seen["inputs_embeds"]}


def _adapted(original: Any, adapter: Any, names: Sequence[str]) -> Any:
    """A model's method, and the adapter on its outputs."""

    @wraps(original)  # `generate` looks at its arguments
    def features(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        for name in names:
            found = output[name]
            if isinstance(found, list | tuple):  # in one product, as on a client: for rounding
                adapted = adapter(torch.cat(list(found)))
                output[name] = list(adapted.split([len(one) for one in found]))
            else:
                output[name] = adapter(found)
        return output

    return features
