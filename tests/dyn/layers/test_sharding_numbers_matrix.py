"""Every layer on every kind of mesh: the numbers of one device, and the sharding that nn.Conv would give."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from layer_cases import (
    CONVOLUTIONS,
    DENSE,
    LAYERS,
    Case,
    assert_trees_close,
    compile_training,
    filled,
    random_input,
)
from products import thin_out
from sharded_steps import CASES, make_mesh

from dyn.layers import Conv, FDConv, ODConv, WarehouseConv

pytestmark = pytest.mark.matrix

CLOSE = dict(rtol=1e-4, atol=1e-4)

# Shape and axes of a mesh, and the axes over which the inputs' axes are sharded.
MESHES = {
    "one device": ((1,), "explicit", ["data"]),
    "data": ((4,), "explicit", ["data"]),
    "data, auto": ((4,), "auto", ["data"]),
    "data of data x model": ((2, 2), "explicit", ["data"]),
    "both": ((2, 2), "explicit", [("data", "model")]),
    "explicit data": ((2, 2), "explicit, auto", ["data"]),
    "explicit model": ((2, 2), "auto, explicit", ["data"]),
    "both, explicit data": ((2, 2), "explicit, auto", [("data", "model")]),
    "space": ((2, 2), "explicit", ["data", "model"]),
    "features": ((2, 2), "explicit", ["data", None, None, "model"]),
}


def place(mesh, variables, x, axes, model=None):
    """Puts the variables and inputs of a layer on a mesh.

    Args:
        mesh: the mesh.
        variables: replicated, or with their last axis over `model`.
        x: sharded over `axes`, of which a dense layer's inputs have the first.
    """

    def place_variable(leaf):
        divides = model and np.ndim(leaf) and leaf.shape[-1] % mesh.shape[model] == 0
        spec = PartitionSpec(*[None] * (np.ndim(leaf) - 1), model) if divides else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    spec = PartitionSpec(*axes if x.ndim > 2 else axes[:1])
    return jax.tree.map(place_variable, variables), jax.device_put(x, NamedSharding(mesh, spec))


def random_case(name):
    """Returns a layer, random variables, and inputs whose axes can all be halved."""
    case, fields = CASES[name]
    layer = case.layer(**fields)
    x = random_input(*((4, 9) if name in DENSE else (4, 6, 4, case.shape[-1])))
    return layer, filled(layer, x), x


@pytest.mark.parametrize(("name", "kind"), thin_out(CASES, MESHES, step=5))
def test_a_training_step_has_the_numbers_of_one_device(name, kind):
    layer, variables, x = random_case(name)
    shape, types, axes = MESHES[kind]
    train = compile_training(layer)
    (_, (y, _)), _ = got = train(*place(make_mesh(shape, types), variables, x, axes))
    assert_trees_close(got, train(variables, x), **CLOSE)
    # The batch stays on its devices.
    assert y.sharding.shard_shape(y.shape)[0] == x.sharding.shard_shape(x.shape)[0] // (
        np.prod(shape) if isinstance(axes[0], tuple) else shape[0]
    )


@pytest.mark.parametrize("name", thin_out(CASES, step=2))
def test_parameters_may_be_sharded_over_the_model(name):
    """`nn.Conv` refuses them on explicit axes."""
    layer, variables, x = random_case(name)
    train = compile_training(layer)
    got = train(*place(make_mesh((2, 2), "explicit"), variables, x, ["data"], model="model"))
    assert_trees_close(got, train(variables, x), **CLOSE)


@pytest.mark.parametrize("kind", ["data", "both", "space"])
@pytest.mark.parametrize("name", [n for n in CASES if n in CONVOLUTIONS or n not in LAYERS])
def test_results_are_sharded_as_those_of_flax_conv(name, kind):
    layer, variables, x = random_case(name)
    shape, types, axes = MESHES[kind]
    mesh = make_mesh(shape, types)
    static = nn.Conv(6, (3, 3))
    specs = [
        jax.eval_shape(jax.jit(net.apply), *place(mesh, v, x, axes)).sharding.spec
        for net, v in ((layer, variables), (static, filled(static, x)))
    ]
    assert specs[0] == specs[1]


LOWERINGS = [
    *((Case(Conv), n) for n in ("taps", "patches", "outputs", "shared", "samples", "reference")),
    *(
        (Case(partial(ODConv, num_kernels=2)), n)
        for n in ("taps", "patches", "shared", "samples", "reference")
    ),
    (Case(partial(ODConv, num_kernels=2), (6, (1, 1))), "outputs"),
    (LAYERS["PixelDynamicConv"], "outputs"),
    (LAYERS["PixelDynamicConv"], "shared"),
    *(
        (Case(partial(FDConv, num_kernels=3, min_features=0)), n)
        for n in ("taps", "patches", "samples", "reference")
    ),
    *((Case(WarehouseConv), n) for n in ("taps", "patches", "samples", "reference")),
    *((LAYERS["GatedConv, slices"], n) for n in ("taps", "patches", "samples", "reference")),
]


@pytest.mark.parametrize(("case", "lowering"), LOWERINGS)
def test_lowerings_by_name(case, lowering):
    layer, x = case.layer(lowering=lowering), random_input(4, 6, 4, 4)
    variables = filled(layer, x)
    train = compile_training(layer)
    got = train(*place(make_mesh((2, 2), "explicit"), variables, x, ["data"]))
    assert_trees_close(got, train(variables, x), **CLOSE)


GEOMETRIES = [
    dict(strides=2),
    dict(padding="VALID", strides=3),  # 3 x 2 positions
    dict(padding="CIRCULAR"),
    dict(padding="REFLECT", kernel_dilation=2),
    dict(input_dilation=2, padding=1),
    dict(feature_group_count=2),
]


@pytest.mark.parametrize("fields", GEOMETRIES)
@pytest.mark.parametrize("name", ["Conv", "ODConv", "WarehouseConv", "PixelDynamicConv"])
def test_geometries(name, fields):
    layer, x = CASES[name][0].layer(6, (3, 3), **fields), random_input(4, 8, 6, 4)
    variables, train = filled(layer, x), compile_training(layer)
    got = train(*place(make_mesh((4,), "explicit"), variables, x, ["data"]))
    assert_trees_close(got, train(variables, x), **CLOSE)


def test_series_volumes_and_several_batch_axes():
    mesh = make_mesh((2,), "explicit")
    for size, shape in (((3,), (4, 6, 3)), ((3, 3, 3), (4, 3, 4, 3, 2)), ((3, 3), (2, 3, 5, 4, 3))):
        layer, x = ODConv(4, size, num_kernels=2), random_input(*shape)
        variables, train = filled(layer, x), compile_training(layer)
        got = train(*place(mesh, variables, x, ["data"]))
        assert_trees_close(got, train(variables, x), **CLOSE)


# Under JAX's transformations, in and outside of a mesh's context.


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_in_the_context_of_a_mesh_nothing_need_be_compiled(name):
    """Also initialisation and the gradient; without a context JAX differentiates only what is compiled."""
    layer, _, x = random_case(name)
    mesh = make_mesh((2,), "explicit")
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        variables = layer.init(jax.random.key(0), sharded)
        y = layer.apply(variables, sharded)
        assert jax.typeof(y).sharding.spec[0] == "data"
        others = {k: v for k, v in variables.items() if k != "params"}

        def loss(params, x):
            return jnp.mean(layer.apply({"params": params, **others}, x) ** 2)

        gradient = jax.grad(loss)(variables["params"], sharded)
    here = jax.device_get(variables)
    np.testing.assert_allclose(y, layer.apply(here, x), **CLOSE)
    others = jax.device_get(others)
    assert_trees_close(jax.device_get(gradient), jax.grad(loss)(here["params"], x), **CLOSE)


@pytest.mark.parametrize("name", thin_out(CASES, step=2))
def test_without_a_context_it_runs_as_flax_conv_does(name):
    """Compiled or not, with variables on the mesh or on one device."""
    layer, variables, x = random_case(name)
    want = jax.jit(layer.apply)(variables, x)
    on_mesh, sharded = place(make_mesh((2,), "explicit"), variables, x, ["data"])
    for apply, given in (
        (layer.apply, on_mesh),
        (layer.apply, variables),
        (jax.jit(layer.apply), variables),
    ):
        y = apply(given, sharded)
        assert jax.typeof(y).sharding.spec[0] == "data"
        np.testing.assert_allclose(y, want, **CLOSE)
    made = jax.jit(layer.init)(jax.random.key(0), sharded)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("name", thin_out(CASES, step=2))
def test_under_vmap_and_remat(name):
    layer, variables, x = random_case(name)
    mesh = make_mesh((2,), "explicit")
    two = jnp.stack([x, random_input(*x.shape, seed=2)])

    def gradient(variables, x):
        apply = jax.checkpoint(layer.apply)
        return jax.grad(lambda p, x: jnp.sum(apply({**variables, "params": p}, x) ** 2))(
            variables["params"], x
        )

    mapped = jax.jit(jax.vmap(gradient, (None, 0)))
    want = mapped(variables, two)
    # Over an axis that is sharded, and over one that is not.
    specs = [PartitionSpec("data"), PartitionSpec(None, "data")]
    # JAX 0.10 does not map a loop with a state over an axis that is sharded.
    for spec in specs[1:] if name.startswith("Deformable") else specs:
        on_mesh, _ = place(mesh, variables, x, ["data"])
        got = mapped(on_mesh, jax.device_put(two, NamedSharding(mesh, spec)))
        assert_trees_close(got, want, **CLOSE)


class Scanned(nn.Module):
    """Three blocks of the same layer under `nn.scan`."""

    case: Case

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(block, x, _):  # noqa: N805
                return nn.relu(self.case.layer(x.shape[-1], (3, 3), name="conv")(x)), None

        collections = {"params": 0, "attention": 0, "batch_stats": 0, "intermediates": 0}
        blocks = nn.scan(Block, variable_axes=collections, split_rngs={"params": True}, length=3)
        return blocks(name="blocks")(x, None)[0]


@pytest.mark.parametrize("name", ["Conv", "ODConv", "WarehouseConv", "FDConv, local"])
def test_under_scan(name):
    net, x = Scanned(CASES[name][0]), random_input(4, 6, 4, 4)
    # Small, so that three layers do not magnify what rounding changes.
    variables, train = filled(net, x, scale=0.1), compile_training(net)
    got = train(*place(make_mesh((2, 2), "explicit"), variables, x, ["data"]))
    assert_trees_close(got, train(variables, x), **CLOSE)
