"""Flags that benchmarks share; each benchmark defines its own beside them."""

from absl import flags

RUNS = flags.DEFINE_integer("runs", 5, "Timed rounds; medians are shown.", lower_bound=1)
QUICK = flags.DEFINE_bool("quick", False, "Measures only a part, within a minute or two.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
