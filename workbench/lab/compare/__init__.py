"""Comparisons of runs: selection, ranking, warnings, figures, and two runs in detail."""
