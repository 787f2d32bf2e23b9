"""One training step of a network: forward pass, backward pass and Adam's update, as functions of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.train.sharding import ParameterSharding

CLASSES = 1000
LEARNING_RATE = 1e-3


class State(NamedTuple):
    """The state that a step changes: parameters, the other collections, and Adam's moments."""

    params: Any
    rest: Any
    moments: Any


def make_step(
    model: nn.Module, sharding: ParameterSharding | None = None
) -> tuple[Callable[[jax.Array, jax.Array], State], Callable[..., State]]:
    """Returns two functions that can be compiled: one makes a state, the other takes a step.

    Args:
        model: classifies pictures into `CLASSES` classes.
        sharding: of parameters that are split over devices; None if each device has all of them.

    Returns:
        A function of (key, a few pictures) that returns a new state, and one of (state, pictures) that
        returns the state after a step. The labels are the numbers of the pictures.
    """
    optimizer = optax.adam(LEARNING_RATE)

    def create(key: jax.Array, pictures: jax.Array) -> State:
        variables = model.init(key, pictures)
        params = variables.pop("params")
        # `init` sows these, too; they are not state.
        for collection in ("intermediates", "losses"):
            variables.pop(collection, None)
        return State(params, variables, optimizer.init(params))

    def train(state: State, pictures: jax.Array) -> State:
        labels = jnp.arange(len(pictures)) % CLASSES

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, changed = model.apply(
                {"params": params, **state.rest},
                pictures,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed

        params = sharding.gather(state.params) if sharding else state.params
        gradients, changed = jax.grad(loss, has_aux=True)(params)
        gradients = sharding.shard(gradients) if sharding else gradients
        updates, moments = optimizer.update(gradients, state.moments)
        params = optax.apply_updates(state.params, updates)
        return State(params, {**state.rest, **changed}, moments)

    return create, train
