"""Plans of trainings, run where there is torch and no tracking: `python -m workbench.training`."""
