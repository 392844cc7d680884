"""Studies: the file that describes one, its notebook's parameters, and how the notebook is executed and reported."""
