"""The laboratory: trains, compares and reports on dynamic convolutional networks."""
