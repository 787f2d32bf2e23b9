"""Detectors and instance segmentation over any backbone: modules, and the pure functions they consist of."""
