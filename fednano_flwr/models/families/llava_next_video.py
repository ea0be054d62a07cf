"""LLaVA-NeXT-Video: pictures are those of LLaVA-NeXT; frames of a video are pictures, too."""

from dataclasses import replace

from fednano_flwr.models.families.llava_next import FAMILY as LLAVA_NEXT

FAMILY = replace(
    LLAVA_NEXT,
    model_type="llava_next_video",
    architecture="LlavaNextVideoForConditionalGeneration",
    videos=True,
)
