"""The client's side of the cut: its half of the model, its adapters, its data, its training."""

import fednano_flwr.models  # noqa: F401  # filters a log line of PEFT, before PEFT is imported
