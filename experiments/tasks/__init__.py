"""One file per task: its model, loss, metrics and pictures."""

from experiments.tasks import classification, segmentation

TASKS = {"classification": classification, "segmentation": segmentation}
