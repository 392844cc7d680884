"""Work that ends in the store: trainings, searches, checks, evaluations, replays, imports."""
