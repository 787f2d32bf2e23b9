"""`DynamicConv` and others as NNX modules: numbers, modes, transformations, losses, shared parts, errors."""

import inspect
import pickle
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from layer_cases import assert_trees_close, filled, random_input, shapes_of

import dyn.nnx
from dyn import layers, models
from dyn.layers import KernelShape
from dyn.nnx import (
    CBAM,
    CondConv,
    ConvModule,
    DynamicConv,
    FromLinen,
    GatedConv,
    LightweightConv,
    Loss,
    ODConv,
    ResNet18,
    Warehouse,
    WarehouseConv,
    load_linen,
    set_blend,
    set_temperature,
    to_linen,
)

FIELDS = {"num_kernels": 2, "attention_norm": "batch"}
LINEN = layers.DynamicConv(4, (3, 3), **FIELDS)
X = random_input(3, 6, 5, 4)


def make_conv(seed=0, **fields):
    return DynamicConv(4, 4, (3, 3), **{**FIELDS, **fields}, rngs=nnx.Rngs(seed))


@nnx.jit
def call(module, *inputs):
    return module(*inputs)


def test_parameters_and_numbers_are_those_of_linen():
    conv = make_conv()
    variables = jax.jit(LINEN.init)(nnx.Rngs(0).params(), X)
    assert_trees_close(to_linen(conv), variables, rtol=1e-6, atol=1e-7)
    variables = filled(LINEN, X)
    load_linen(conv, variables)
    conv.eval()
    np.testing.assert_array_equal(call(conv, X), jax.jit(LINEN.apply)(variables, X))
    np.testing.assert_array_equal(
        conv.attention.squeeze.kernel[...], variables["params"]["attention"]["squeeze"]["kernel"]
    )
    assert_trees_close(to_linen(conv), variables, rtol=0, atol=0)


def test_train_and_eval_decide_about_statistics():
    conv = make_conv()
    assert conv.use_running_average is False  # as in nnx.BatchNorm
    variables = to_linen(conv)
    y, updates = jax.jit(partial(LINEN.apply, mutable=["batch_stats"]))(variables, X)
    np.testing.assert_array_equal(call(conv, X), y)
    after = to_linen(conv)
    assert_trees_close(after["batch_stats"], updates["batch_stats"], rtol=0, atol=0)

    conv.eval()
    evaluated = call(conv, X)
    assert_trees_close(to_linen(conv), after, rtol=0, atol=0)
    np.testing.assert_array_equal(evaluated, jax.jit(LINEN.apply)(after, X))
    assert np.abs(evaluated - y).max() > 0
    trained = conv(X, use_running_average=False)  # of one call
    np.testing.assert_allclose(trained, y, rtol=1e-5, atol=1e-6)
    assert conv.use_running_average is True
    assert make_conv(use_running_average=True).use_running_average


def test_the_temperature_changes_without_compiling_again():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = make_conv()
            self.rest = nnx.List([make_conv(1), nnx.Linear(4, 2, rngs=rngs)])

    net, traces = Net(nnx.Rngs(0)), []

    @nnx.jit
    def apply(net):
        traces.append(None)
        return net.rest[0](net.first(X))

    outputs = []
    for temperature in (1.0, 30.0, jnp.float32(3)):
        set_temperature(net, temperature)
        assert float(net.first.attention.temperature[...]) == temperature
        assert float(net.rest[0].attention.temperature[...]) == temperature
        outputs.append(apply(net))
    assert len(traces) == 1
    assert np.abs(outputs[0] - outputs[1]).max() > 0
    nnx.jit(set_temperature)(net, 2.0)
    assert float(net.first.attention.temperature[...]) == 2
    with pytest.raises(ValueError, match="positive"):
        set_temperature(net, 0.0)


def test_it_trains_by_an_nnx_optimizer():
    conv = make_conv()
    optimizer = nnx.Optimizer(conv, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(conv, optimizer):
        value, gradient = nnx.value_and_grad(lambda conv: jnp.mean((conv(X) - 1) ** 2))(conv)
        optimizer.update(conv, gradient)
        return value

    losses = [float(step(conv, optimizer)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert float(conv.attention.temperature[...]) == 1  # is no parameter


def test_a_stack_of_layers_in_scan_and_remat_is_a_loop():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return DynamicConv(4, 4, (3, 3), **FIELDS, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def apply(layer, x):
        return nnx.remat(lambda layer, x: layer(x))(layer, x)

    stack = make(nnx.Rngs(0))
    variables = to_linen(stack)
    assert np.abs(stack.kernel[0] - stack.kernel[1]).max() > 0

    @nnx.jit
    def differentiate(stack):
        return nnx.value_and_grad(lambda stack: jnp.mean(apply(stack, X) ** 2))(stack)

    @jax.jit
    def differentiate_loop(variables):
        def loss(params):
            y, updates = X, []
            for n in range(3):
                layer = jax.tree.map(lambda a: a[n], {**variables, "params": params})  # noqa: B023
                y, update = LINEN.apply(layer, y, mutable=["batch_stats"])
                updates.append(update["batch_stats"])
            return jnp.mean(y**2), jax.tree.map(lambda *a: jnp.stack(a), *updates)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    value, gradient = differentiate(stack)
    (want, statistics), wanted = differentiate_loop(variables)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert_trees_close(nnx.to_pure_dict(gradient), wanted, rtol=1e-4, atol=1e-6)
    assert_trees_close(to_linen(stack)["batch_stats"], statistics, rtol=1e-5, atol=1e-6)


def test_an_ensemble_by_vmap_split_and_merge():
    conv, other = make_conv(), make_conv(1)
    definition, state = nnx.split(conv)
    assert definition == nnx.graphdef(other)  # equal layers compile once
    both = nnx.merge(
        definition, jax.tree.map(lambda a, b: jnp.stack([a, b]), state, nnx.state(other))
    )
    y = nnx.jit(nnx.vmap(lambda conv, x: conv(x), in_axes=(0, None)))(both, X)
    for got, one in zip(y, (conv, other), strict=True):
        np.testing.assert_allclose(got, call(one, X), rtol=1e-5, atol=1e-6)


def test_it_can_be_made_by_a_compiled_or_abstract_constructor():
    want = to_linen(make_conv())
    assert_trees_close(to_linen(nnx.jit(make_conv)()), want, rtol=1e-6, atol=1e-7)
    abstract = nnx.eval_shape(make_conv)
    assert shapes_of(to_linen(abstract)) == shapes_of(want)
    assert isinstance(abstract.kernel.get_value(), jax.ShapeDtypeStruct)


def test_capture_returns_what_linen_sows():
    gated = GatedConv(4, 6, (3, 3), density=0.25, rngs=nnx.Rngs(0))

    @nnx.jit
    def apply(gated):
        return nnx.capture(gated, nnx.Intermediate, Loss)(X)

    y, seen, losses = apply(gated)
    linen = layers.GatedConv(6, (3, 3), density=0.25)
    want, sown = jax.jit(partial(linen.apply, mutable=["intermediates", "losses"]))(
        to_linen(gated), X
    )
    np.testing.assert_array_equal(y, want)
    assert_trees_close(nnx.to_pure_dict(seen), sown["intermediates"], rtol=0, atol=0)
    assert_trees_close(nnx.to_pure_dict(losses), sown["losses"], rtol=0, atol=0)
    before = nnx.graphdef(gated)
    gated(X)
    assert nnx.graphdef(gated) == before  # a call alone keeps nothing


def test_dropout_draws_from_the_layers_own_random_numbers():
    conv = LightweightConv(4, 4, (3,), weight_dropout=0.5, rngs=nnx.Rngs(0))
    x = random_input(2, 9, 4)
    first, second = call(conv, x), call(conv, x)
    assert np.abs(first - second).max() > 0
    key = nnx.Rngs(7).dropout()
    np.testing.assert_array_equal(conv(x, rngs=key), conv(x, rngs=nnx.Rngs(7)))
    assert np.abs(conv(x, deterministic=True) - first).max() > 0
    conv.eval()
    linen = layers.LightweightConv(4, (3,), weight_dropout=0.5)
    np.testing.assert_array_equal(call(conv, x), jax.jit(linen.apply)(to_linen(conv), x))
    assert "rngs" not in vars(LightweightConv(4, 4, (3,), rngs=nnx.Rngs(0)))


def test_layers_share_the_cells_of_a_warehouse():
    class Two(nnx.Module):
        def __init__(self, rngs):
            cells = Warehouse([KernelShape((3, 3), 4, 4), KernelShape((3, 3), 4, 8)], rngs=rngs)
            self.first = WarehouseConv(4, 4, (3, 3), warehouse=cells, place=0, rngs=rngs)
            self.second = WarehouseConv(4, 8, (3, 3), warehouse=cells, place=1, rngs=rngs)

        def __call__(self, x):
            return self.second(self.first(x))

    two = Two(nnx.Rngs(0))
    assert two.first.warehouse is two.second.warehouse
    set_blend(two, 0.5)
    assert call(two, X).shape == (3, 6, 5, 8)
    gradient = nnx.to_pure_dict(nnx.jit(nnx.grad(lambda two: jnp.sum(two(X) ** 2)))(two))
    assert gradient["first"]["warehouse"]["cells"].shape == (27, 4, 4)
    assert "warehouse" not in gradient["second"]

    class LinenTwo(nn.Module):
        @nn.compact
        def __call__(self, x):
            cells = layers.Warehouse(two.first.linen.warehouse.kernels)
            x = layers.WarehouseConv(4, (3, 3), warehouse=cells, place=0, name="first")(x)
            return layers.WarehouseConv(8, (3, 3), warehouse=cells, place=1, name="second")(x)

    variables = to_linen(two)
    params = variables["params"]
    params["Warehouse_0"] = params["first"].pop("warehouse")
    np.testing.assert_allclose(
        call(two, X), jax.jit(LinenTwo().apply)(variables, X), rtol=1e-5, atol=1e-6
    )


def test_layers_share_a_router_of_linen():
    router = make_router()
    conv = CondConv(4, 6, (3, 3), num_kernels=2, router=router, rngs=nnx.Rngs(0))
    assert conv.router is router
    linen = layers.CondConv(6, (3, 3), num_kernels=2, router=nn.Dense(2))
    np.testing.assert_array_equal(call(conv, X), jax.jit(linen.apply)(to_linen(conv), X))


def test_linen_modules_may_have_lists_and_dictionaries():
    class Named(nn.Module):
        convs: dict

        @nn.compact
        def __call__(self, x):
            return self.convs["first"](x)

    small = {"num_classes": 3, "width": 4, "stem": "small"}
    lists = models.ResNet([1], models.BasicBlock, **small)
    x = random_input(2, 8, 8, 3)
    nets = [lists, layers.replace_convs(lists, layers.ODConv), Named({"first": nn.Conv(3, [1, 1])})]
    for net in [*nets, nn.Sequential([nn.Sequential([nn.Dense(4)]), nn.relu])]:
        module = nnx.eval_shape(lambda net=net: FromLinen(net, x, rngs=nnx.Rngs(0)))
        assert shapes_of(to_linen(module)) == shapes_of(jax.eval_shape(net.init, nnx.Rngs(0)(), x))
    other = nnx.eval_shape(lambda: ResNet18(3, **small, stage_sizes=[1], rngs=nnx.Rngs(0)))
    module = nnx.eval_shape(lambda: FromLinen(lists, x, rngs=nnx.Rngs(0)))
    assert module.linen == other.linen and hash(module.linen) == hash(other.linen)


class Network(nn.Module):
    """A network that takes `train`, and drops some of its features if there is a share."""

    share: float = 0.0
    choices: Any = ()

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dropout(self.share, deterministic=not train)(x)


def test_random_numbers_for_dropout_are_needed_by_what_drops():
    net = FromLinen(Network(), X, rngs=nnx.Rngs(params=0))
    assert net(X).shape == X.shape and net.use_running_average is False
    net = FromLinen(Network(0.5), X, rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="dropout= beside params="):
        net(X)
    assert net(X, rngs=nnx.Rngs(1)).shape == X.shape
    net.eval()
    assert net(X).shape == X.shape
    for rngs in (nnx.Rngs(0), nnx.Rngs(params=0, dropout=1)):
        net = FromLinen(Network(0.5), X, rngs=rngs)
        assert np.abs(net(X) - net(X)).max() > 0


def test_a_mask_is_kept_as_in_nnx_conv():
    mask = np.ones((3, 3, 4, 4), np.float32)
    mask[0] = 0
    conv = make_conv(mask=mask)
    linen = layers.DynamicConv(4, (3, 3), **FIELDS, mask=mask)
    want = linen.apply(to_linen(conv), X, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(call(conv, X), want, rtol=1e-5, atol=1e-6)


def test_a_resnet_takes_layers_of_both_and_has_one_switch():
    def make(conv):
        small = {"num_classes": 3, "width": 4, "stem": "small", "dropout": 0.5, "stage_sizes": (1,)}
        return ResNet18(3, **small, conv=conv, rngs=nnx.Rngs(0))

    net = make(partial(DynamicConv, **FIELDS))
    other = nnx.eval_shape(lambda: make(partial(layers.DynamicConv, **FIELDS)))
    assert net.linen == other.linen and hash(net.linen) == hash(other.linen)
    x = random_input(2, 8, 8, 3)
    variables = to_linen(net)
    assert shapes_of(variables) == shapes_of(jax.eval_shape(net.linen.init, jax.random.key(0), x))

    @nnx.jit
    def train(net, x):
        return nnx.capture(net, nnx.Intermediate)(x)

    y, seen = train(net, x)
    assert y.shape == (2, 3)
    assert seen["stage1_block1"]["conv2"]["attention"]["weights"].get_value()[0][
        "kernel"
    ].shape == (2, 2)
    stats = zip(
        *(jax.tree.leaves(v["batch_stats"]) for v in (variables, to_linen(net))), strict=True
    )
    assert all(np.abs(new - old).max() > 0 for old, new in stats)
    net.eval()
    want = jax.jit(net.linen.apply)(to_linen(net), x)
    np.testing.assert_array_equal(call(net, x), want)
    net.set_attributes(deterministic=False)
    with pytest.raises(ValueError, match="one switch"):
        net(x)


def test_orbax_keeps_the_state(tmp_path):
    conv = make_conv()
    call(conv, X)
    set_temperature(conv, 5.0)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(conv)))
        checkpointer.wait_until_finished()
        other = make_conv(1)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.to_pure_dict(nnx.state(other)))
        restored = checkpointer.restore(tmp_path / "state", abstract)
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(other, state)
    assert_trees_close(to_linen(other), to_linen(conv), rtol=0, atol=0)


WITHOUT = {"ReplacedLayers", "Warehouses"}  # they need a Linen network: see FromLinen
BLOCKS = {"BasicBlock", "Bottleneck", "SelectiveBasicBlock", "SelectiveBottleneck"}
DETECTORS = {"CondInst", "FasterRCNN", "FeaturePyramid", "MaskRCNN"}  # they take targets


def test_every_layer_and_network_has_a_module():
    for room, without in ((layers, WITHOUT), (models, BLOCKS | DETECTORS)):
        for name in set(room.__all__) - without:
            linen = getattr(room, name)
            kind = linen.func if isinstance(linen, partial) else linen
            if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                continue
            cls = getattr(dyn.nnx, name)
            assert cls.__name__ == cls.__qualname__ == name and name in dyn.nnx.__all__
            assert pickle.loads(pickle.dumps(cls)) is cls
            assert cls.__doc__.splitlines()[0] == kind.__doc__.splitlines()[0]
            fields = inspect.signature(linen).parameters.keys() - {"parent", "name", "features"}
            assert fields <= inspect.signature(cls).parameters.keys()
            described = cls.__doc__.partition("Args:")[2]
            assert "in_features" in described or "num_features" in described or name == "Warehouse"


def test_signature_and_docstring_are_those_of_nnx_conv_and_linen():
    names = list(inspect.signature(ODConv).parameters)
    assert names[:4] == list(inspect.signature(nnx.Conv.__init__).parameters)[1:5]
    assert names[-1] == "rngs" and "num_kernels" in names
    assert "y = a_f * conv(x * a_c" in ODConv.__doc__
    assert "num_kernels: K, the number of candidate kernels." in ODConv.__doc__
    assert "mutable" not in ODConv.__doc__ and ">>>" not in ODConv.__doc__

    class Mine(ODConv):
        def __init__(self, width, *, rngs):
            super().__init__(width, width, (1,), rngs=rngs)

    assert list(inspect.signature(Mine).parameters) == ["width", "rngs"]
    assert Mine(4, rngs=nnx.Rngs(0))(X).shape == X.shape


def make_net(conv):
    return ResNet18(3, num_classes=2, width=4, stage_sizes=(1,), conv=conv, rngs=nnx.Rngs(0))


def make_router():
    return FromLinen(nn.Dense(2), X[:1, 0, 0], rngs=nnx.Rngs(0))


def make_cells():
    return Warehouse([KernelShape((3, 3), 4, 4)], rngs=nnx.Rngs(0))


ERRORS = [
    (lambda: make_conv(num_kernel=2), "did you mean num_kernels"),
    (lambda: make_conv(features=2), "out_features"),
    (lambda: ODConv(4, 4, 3, rngs=nnx.Rngs(0))(X), r"\(3, 3\)"),
    (lambda: make_conv()(X[..., :2]), "in_features=4"),
    (lambda: make_conv()(X, X[:, 0, 0, :2]), "context_features=None"),
    (lambda: CBAM(4, rngs=nnx.Rngs(0))(X[:, 0]), "spatial_axes=2"),
    (lambda: ResNet18(3, num_classes=2, conv=nnx.Conv, rngs=nnx.Rngs(0)), "conv=Conv"),
    (lambda: make_conv(router=nnx.Linear(4, 2, rngs=nnx.Rngs(0))), "FromLinen"),
    (lambda: make_net(partial(CondConv, router=make_router())), "argument router .* Dense"),
    (lambda: make_net(partial(partial, CondConv, make_router())), "argument 1 .* Dense"),
    (lambda: make_net(partial(WarehouseConv, warehouse=make_cells())), "argument warehouse"),
    (lambda: FromLinen(Network(choices={1}), X, rngs=nnx.Rngs(0)), "Network: choices"),
    (
        lambda: FromLinen(nn.Sequential([nn.relu, Network(choices={1})]), X, rngs=nnx.Rngs(0)),
        "Sequential: layers",
    ),
    (lambda: load_linen(make_conv(), {"params": {}}), "lack params/"),
    (
        lambda: load_linen(make_conv(), {"params": {}, "other": {"a": 1}}),
        "lack params|has not other",
    ),
    (lambda: ConvModule(4, 4, (3, 3), rngs=nnx.Rngs(0)), "linen="),
]


@pytest.mark.parametrize(("fails", "words"), ERRORS)
def test_mistakes_have_messages(fails, words):
    with pytest.raises((ValueError, TypeError), match=words):
        fails()


def test_is_made_inside_another_program():
    made = nnx.jit(make_conv)()
    assert_trees_close(to_linen(made), to_linen(make_conv()), rtol=1e-6, atol=1e-7)
