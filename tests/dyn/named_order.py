"""Variables of published numbers: the i-th parameter in a stated order is a sine of phase 0.3 + 0.1 i."""

import numpy as np
from flax import traverse_util
from layer_cases import sines

_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0), 5: (0, 3, 4, 2, 1)}  # from torch's layouts to ours


def fill_in_order(entries, amplitude):
    """Returns variables, NumPy arrays, from `(path, shape in torch)` in the stated order.

    A path that ends in `norm` stands for its scale and its bias, which follow each other, and its statistics.
    """
    flat, number = {}, 0

    def take(shape, amplitude):
        nonlocal number
        number += 1
        return sines(shape, 0.3 + 0.1 * (number - 1), amplitude)

    for path, shape in entries:
        if path.endswith("norm"):
            flat[f"params/{path}/scale"] = 1 + take(shape, 0.1)
            flat[f"params/{path}/bias"] = take(shape, amplitude)
            flat[f"batch_stats/{path}/mean"] = sines(shape, 0.4, 0.1)
            flat[f"batch_stats/{path}/var"] = 1 + sines(shape, 0.5, 0.2)
        else:
            flat[f"params/{path}"] = np.transpose(take(shape, amplitude), _AXES[len(shape)])
    return traverse_util.unflatten_dict(flat, sep="/")
