"""`fednano compare`: experiments × settings × seeds on this machine, and what they say.

plan.py        which runs there are, each with its resolved config
store.py       runs on disk: finished, unfinished, removed
worker.py      a process that does one run after another
board.py       what a terminal shows meanwhile
pool.py        several of them, and which run goes where
statistics.py  means, deviations, intervals
results.py     rows and paired differences, as results.json has them
tables.py      the table and the CSV files
picture.py     the two pictures
command.py     all of it in order
"""
