"""Every convolution in VGG and MobileNet, traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn import models
from dyn.models import efficientnet, mobilenet, mobilenet_v3
from experiments.configs import common
from experiments.tasks import make_task
from experiments.tasks.backbone import CONVS

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]


CASES = [
    *((network, name) for network in ("vgg16", "mobilenet_v2") for name in CONVS),
    *(("efficientnet_b0", name) for name in ("conv", "condconv", "dcd", "odconv", "warehouse")),
    *(("mobilenet_v3", name) for name in ("dcd", "dyconv")),
    *(("dymn", name) for name in ("condconv", "dyconv", "odconv")),
]


@pytest.mark.parametrize(("network", "name"), CASES)
def test_a_network_takes_every_convolution(network, name, monkeypatch):
    # One block in each stage.
    for module in (mobilenet, efficientnet):
        stages = [(*stage[:-2], 1, stage[-1]) for stage in module.STAGES]
        monkeypatch.setattr(module, "STAGES", stages)
    stages = [stage[:1] for stage in mobilenet_v3.STAGES]
    monkeypatch.setattr(mobilenet_v3, "STAGES", stages)
    monkeypatch.setitem(models.VGG16.keywords, "stage_sizes", (1, 2))
    config = common.get_config("smoke")
    config.model.network = network
    # A small 1x1 kernel has fewer frequencies than the layer has by default.
    config.conv = {
        "name": name,
        **({"num_kernels": 8, "min_features": 0} if name == "fdconv" else {}),
    }
    task = make_task(config)
    model = task.make_model(3, spatial_axes=2)
    batch = {"inputs": np.zeros((8, 8, 8, 1), np.float32), "label": np.zeros(8, np.int32)}
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), batch["inputs"])
    loss, (_, changed) = jax.eval_shape(
        lambda variables: task.compute_loss(model, variables, batch, jax.random.key(0), False),
        shapes,
    )
    assert loss.shape == () and loss.dtype == jnp.float32
    statistics = shapes.get("batch_stats", {})
    assert jax.tree.structure(changed.get("batch_stats", {})) == jax.tree.structure(statistics)
