"""Run plans of trainings on machines without tracking: `python -m workbench.training`."""
