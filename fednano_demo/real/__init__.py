"""A real language model with eyes that this project trained: SmolLM2-135M behind a small LLaVA.

    python -m fednano_demo.real.build         # make the model in the cache folder
    python -m fednano_demo.real.pretrain      # train the shipped vision tower and connector again
    python -m fednano_demo.real.easy OUT      # easy-VQA's questions with renamed shapes, as a table

Needs `pip install 'fednano-flwr[real]'`.
"""
