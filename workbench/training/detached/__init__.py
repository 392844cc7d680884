"""Run plans of trainings on machines with torch but without tracking: `python -m workbench.training`."""
