"""A tiny multimodal LLM with its weights, its data generator and the script that trained it.

It lets every part of FedNano run offline and within minutes on a laptop's CPU: the model is a real
`LlavaForConditionalGeneration` of 1.2 million parameters, the questions are drawn by a generator.

    from fednano_demo import MODEL_DIR                      # weights and processor
    python -m fednano_demo.generate OUT                     # questions in two datasets' layouts
    python -m fednano_demo.pretrain                         # train the weights again
    python -m fednano_demo.ablation                         # what each adapter is worth
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
