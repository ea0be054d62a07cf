"""A run of many small rounds: does anything grow that should not?"""
