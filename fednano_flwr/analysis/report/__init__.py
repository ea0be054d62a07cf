"""`fednano report`: what runs have left, as a page to read and figures to show."""
