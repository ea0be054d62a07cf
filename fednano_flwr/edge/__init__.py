"""The client's side of the cut: its half of the model, its adapters, its data, its training."""

from fednano_flwr.base.notices import hush_bitsandbytes

hush_bitsandbytes()  # here, since no module of this folder has imported PEFT yet
