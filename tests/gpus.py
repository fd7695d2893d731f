"""NVIDIA GPUs that are not there, for tests that compile for them."""

import importlib.util

import jax

from maxlm.parallel.hardware import CHIPS, System
from maxlm.plan.compile import topology_devices


def has_plugin() -> bool:
    """Whether JAX's CUDA plugin is installed (extra plan-gpu)."""
    plugins = importlib.util.find_spec("jax_plugins")
    return plugins is not None and any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))


def devices(chip: str) -> list[jax.Device]:
    """One GPU of a kind of `hardware.CHIPS`."""
    return topology_devices(System(f"{chip}x1", CHIPS[chip], 1, None, (1, 1)))
