"""LFM2-VL: most layers of its language model are short convolutions, which keep a state."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from fednano_flwr.models.families.base import Connector, Family


@dataclass(frozen=True)
class Lfm2VL(Family):
    def refusal(self, config: PretrainedConfig) -> str:
        if not getattr(config.text_config, "conv_bias", False):
            return ""
        return (
            "its convolutions have a bias (conv_bias in text_config), by which padding would reach "
            "the tokens after it: an answer would depend on the others of its batch"
        )


FAMILY = Lfm2VL(
    "lfm2_vl",
    "Lfm2VlForConditionalGeneration",
    picture_keys=("tile_size", "encoder_patch_size", "downsample_factor"),
    connector=Connector("multi_modal_projector.linear_2"),
)
