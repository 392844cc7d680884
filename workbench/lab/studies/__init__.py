"""Studies: their files, the parameters of their notebooks, execution and reports."""
