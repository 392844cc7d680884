"""A network of the user's own, on images of their own: without BatchNorm, with a threshold, and what to take away."""
