"""Runs beside one another: which are picked, how they rank, what cannot be compared, two in detail."""
