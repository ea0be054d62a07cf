"""Gemma 3: the tokens of a picture see each other."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class Gemma3(Family):
    def picture_tokens(self, config: PretrainedConfig) -> int | None:
        return config.mm_tokens_per_image

    def token_type_ids(self, pictures: Tensor, prompt: int) -> Tensor | None:
        return pictures.long()


FAMILY = Gemma3(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    token_types=True,
    picture_keys=("image_seq_length",),
    # A bare matrix (k, d) that the pooled, normed features are multiplied with from the left.
    connector=Connector(rows=("multi_modal_projector.mm_input_projection_weight",)),
)
