"""`fednano doctor`: whether a run has on this machine what it needs, and what to do if not.

One file a theme, each of small functions that return findings; `finding.py` says what that is,
`command.py` which are asked for, `report.py` how they are shown.
"""
