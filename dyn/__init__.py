"""Dynamic convolutions for JAX and Flax."""
