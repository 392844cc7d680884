"""Work that ends in the store: trainings, searches, checks, evaluations, replays, and results of other machines."""
