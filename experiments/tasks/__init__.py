"""One file per task: its model, loss, metrics and pictures."""

from experiments.tasks import acgan, classification, reconstruction, segmentation, tagging

TASKS = {
    "classification": classification,
    "segmentation": segmentation,
    "tagging": tagging,
    "reconstruction": reconstruction,
    "acgan": acgan,
}
