"""InstructBLIP: its Q-Former reads the question, on the client."""

from fednano_flwr.models.families.blip_2 import QFormer

FAMILY = QFormer("instructblip", "InstructBlipForConditionalGeneration")
