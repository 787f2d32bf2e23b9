"""One file per task: its model, loss, metrics and figures, behind one interface, `Task`."""

from ml_collections import ConfigDict

from experiments.tasks.acgan import Generation
from experiments.tasks.classification import Classification
from experiments.tasks.event_detection import EventDetection
from experiments.tasks.instance_segmentation import InstanceSegmentation
from experiments.tasks.reconstruction import Reconstruction
from experiments.tasks.segmentation import Segmentation
from experiments.tasks.tagging import Tagging
from experiments.tasks.task import Results, Task

__all__ = ["TASKS", "Results", "Task", "make_task"]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "instance_segmentation": InstanceSegmentation,
    "tagging": Tagging,
    "reconstruction": Reconstruction,
    "acgan": Generation,
    "event_detection": EventDetection,
}


def make_task(config: ConfigDict) -> Task:
    """Returns the task that `config.task` names."""
    return TASKS[config.task](config)
