"""One file per task: its model, loss, metrics and pictures."""

from experiments.tasks import acgan, classification, reconstruction, segmentation

TASKS = {
    "classification": classification,
    "segmentation": segmentation,
    "reconstruction": reconstruction,
    "acgan": acgan,
}
