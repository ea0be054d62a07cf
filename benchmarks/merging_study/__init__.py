"""`python -m benchmarks.merging_study`: how strategies merge, each tuned, at 5 to 50 clients.

plan.py      parts of the study: methods, settings, rates and seeds, as cells
places.py    a cell as a run: its questions, drawn by its seed, its config and digest
rows.py      results/merging/runs.csv, a line a finished run
command.py   what is missing is run, row by row
lines.py     rows as the lines of tables: means, and differences to fedavg
tables.py    tables of docs/merging.md
demo.py      results/demo.json
pictures.py  pictures of docs/merging.md
"""
