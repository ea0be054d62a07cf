"""What the studies share: a study is a list of cells, and a finished run is a row of a CSV file.

rows.py     rows of a committed CSV file
plan.py     a cell as a run of `fednano compare`; its digest; which candidate a tuning chose
missing.py  runs side by side, each kept as a row once it has ended
marks.py    tables between the marks of a page
main.py     the command line
"""
