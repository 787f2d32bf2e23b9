"""One file per task: its model, loss, metrics and pictures."""
