"""The flags that all benchmarks have; each has its own beside them."""

from absl import flags

RUNS = flags.DEFINE_integer("runs", 5, "Timed rounds; medians are shown.", lower_bound=1)
QUICK = flags.DEFINE_bool("quick", False, "A part of it, within a minute or two.")
OUT = flags.DEFINE_string("out", "runs/benchmarks", "Where the numbers and the plot go.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
