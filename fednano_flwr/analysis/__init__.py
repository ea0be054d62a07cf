"""One run, several runs, experiments over seeds: statistics, figures, pages."""
