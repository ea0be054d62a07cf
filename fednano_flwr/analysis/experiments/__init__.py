"""`fednano compare`: experiments × settings × seeds on this machine.

plan.py        which runs there are, each with its resolved config
store.py       runs on disk: finished, unfinished, removed
worker.py      a process that does one run after another
pool.py        several of them, and which run goes where
progress.py    what is said and shown meanwhile
results.py     rows and paired differences, as results.json has them
tables.py      the table and the CSV files
"""
