"""`python -m benchmarks.real_study`: how much of LoRA's gain NanoAdapters get, on a real LLM.

scienceqa.py  ScienceQA's text-only questions, dealt by a seed
plan.py       tasks, methods, rates and seeds; each run's config, data and digest
whole.py      runs of the unsplit model: frozen, and with LoRA inside
rows.py       results/real/runs.csv, a line a finished run
share.py      the share of LoRA's gain and its interval: pure functions
pages.py      rows as results/real/premise.json and the tables of docs/real-model.md
command.py    what is missing is run, row by row
"""
