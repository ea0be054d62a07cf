"""FedNano on Flower: federated tuning of multimodal LLMs with the LLM kept on the server."""
