"""`python -m benchmarks.audit`: how much of the clients' text their LLM host could read.

attack.py     from what was received to tokens: pure functions
recording.py  what the host received, beside what was sent
playing.py    some clients' training, over the real exchange and a recording host
results.py    what that amounts to for a run
tables.py     results as a table
command.py    runs and configs in, tables out
"""
