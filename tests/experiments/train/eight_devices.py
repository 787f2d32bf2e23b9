"""Prints how far two training steps and an evaluation on eight devices are from those on one."""

import itertools
import json
import sys

import jax
import numpy as np
from jax.sharding import AxisType

AXES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def compare_numbers(ours, theirs):
    """Returns the largest error, as a share of the tolerance that the tests of meshes have."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(
        float(np.max(np.abs(np.float64(a) - np.float64(b)) / (1e-5 + 1e-4 * np.abs(np.float64(b)))))
        for a, b in pairs
        if np.size(a)
    )


def compare_meshes(name):
    """Returns the error on each mesh, by its axes."""
    from test_meshes_matrix import make_mesh, run  # found by the process that the test starts

    expected = run(name, make_mesh(AxisType.Auto, devices=1))
    errors = {}
    for axes, types in itertools.product((1, 2), AXES):
        mesh = make_mesh(*[AXES[types]] * axes, devices=8)
        errors[f"{' x '.join(mesh.axis_names)}, {types}"] = compare_numbers(
            run(name, mesh), expected
        )
    return errors


if __name__ == "__main__":
    print(json.dumps(compare_meshes(sys.argv[1])))
