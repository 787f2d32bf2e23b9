"""Training: loop, step, program, optimizer."""
