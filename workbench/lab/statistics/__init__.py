"""Intervals, effects with their tests, boundaries of stability, and the verdict that they lead to."""
