"""The platform that programs are planned for."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu", "onnx")

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def plan_for_platform(platform: str) -> Iterator[None]:
    """Plans all that is traced within the context for this platform instead of the one JAX runs on.

    Args:
        platform: 'cpu', 'gpu' (or 'cuda', 'rocm'), 'tpu', or 'onnx' for a program that becomes an ONNX file,
            with the prices of a TPU.

    Raises:
        ValueError: for another platform.
    """
    check_platform(platform)
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def check_platform(platform: str) -> None:
    """Checks that a platform that somebody names is known.

    JAX may run on others, which are planned for like a GPU.

    Raises:
        ValueError: if it is not.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform={platform!r} is unknown: write one of {list(PLATFORMS)}.")


def find_platform() -> str:
    """Returns the platform that is planned for: that of `plan_for_platform`, or the one JAX runs on."""
    return _PLATFORM.get() or jax.default_backend()
