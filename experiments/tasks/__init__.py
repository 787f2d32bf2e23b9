"""One file per task: its model, loss, metrics and pictures."""

from experiments.tasks import acgan, classification, segmentation

TASKS = {"acgan": acgan, "classification": classification, "segmentation": segmentation}
