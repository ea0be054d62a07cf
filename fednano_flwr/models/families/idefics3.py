"""Idefics3, and the first generation of SmolVLM."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "idefics3",
    "Idefics3ForConditionalGeneration",
    language="model.text_model",
    picture_keys=("image_seq_len",),
    connector=Connector("connector.modality_projection.proj"),
)
