"""A train step with ODConv over a sharded batch gathers nothing: no device needs another's samples."""

from functools import partial

from sharded_steps import gathers, train_step_text

from dyn.layers import ODConv


def test_a_train_step_gathers_nothing():
    text = train_step_text(partial(ODConv, num_kernels=4, attention_norm="batch"))
    assert "all-reduce" in text  # of gradients and statistics, so the batch is sharded
    assert not gathers(text)
