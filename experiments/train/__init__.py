"""Training: the loop, the step, its compilation, the optimizer, and what surrounds them."""
