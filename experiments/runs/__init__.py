"""The folder of a run: lock, config, log, checkpoints, weights and artefacts."""
