"""SmolVLM2. Its processor needs the package num2words."""

from fednano_flwr.models.families.base import Connector, Family

FAMILY = Family(
    "smolvlm",
    "SmolVLMForConditionalGeneration",
    language="model.text_model",
    picture_keys=("image_seq_len",),
    connector=Connector("connector.modality_projection.proj"),
    videos=True,
)
