"""Intervals, paired effects and their tests, boundaries of stability, and verdicts."""
