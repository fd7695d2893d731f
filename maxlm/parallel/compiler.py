"""XLA's options for the train step: one table, which training and planning apply alike.

A row names the chips, an option, its value and why. What is not here stays at the compiler's default, which on TPU
(libtpu 0.0.42.1) already schedules collectives behind compute. `compiler.options` of the configuration takes the place
of the whole row set; the config.yaml of a run states the options in use.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

from maxlm.config import CompilerConfig, Config
from maxlm.errors import ConfigError
from maxlm.parallel.hardware import CHIPS, chip_of


class Row(NamedTuple):
    chips: tuple[str, ...]  # names in `hardware.CHIPS`
    option: str
    value: str
    why: str


GPUS = tuple(chip.name for chip in CHIPS.values() if chip.platform == "cuda")

# No row for TPU. For a v5p of 4 x 4 x 4 libtpu gathers over one axis of 64 by all-reduces of twice the bytes, and no
# option changed that (three-dimensional emitters, asymmetric or asynchronous gathers, gathers on the sparse cores); two
# axes do, which are gathered one after the other (`sharding.reshard`). Two options together make the sum of gradients
# over all three dimensions a reduce-scatter instead of an all-reduce, for 2% more memory:
# xla_tpu_enable_sparse_core_collective_offload_reduce_scatter and ..._nd_reduce_scatter. They compile, but no chip has
# run them for this table; `compiler.options` of a run may state them.
#
# Not for GPUs: xla_gpu_enable_pipelined_all_gather starts each layer's first gather an iteration earlier, but the loops
# that it rotates copy the stacks of saved activations. Llama 3 8B on 8 H100 took 62.6 GiB with it and 45.2 without
# (remat.policy dots, compiled for absent GPUs).
TABLE: tuple[Row, ...] = (
    Row(
        GPUS,
        "xla_gpu_enable_latency_hiding_scheduler",
        "true",
        "Collectives start early and are awaited late, behind products. It is the default of XLA in jax 0.10; stated, "
        "it does not depend on that.",
    ),
)


def step_options(config: CompilerConfig, device_kind: str) -> dict[str, str]:
    """Options of the train step on devices of a kind: those of the configuration, or of the table for `auto`."""
    if config.options != "auto":
        return dict(config.options)
    chip = chip_of(device_kind)
    return {row.option: row.value for row in TABLE if chip and chip.name in row.chips}


def jit_options(options: dict[str, str]) -> dict[str, str] | None:
    """As jax.jit takes them: XLA reads its own options' truth values in capitals alone."""
    values = {name: value.capitalize() if value in ("true", "false") else value for name, value in options.items()}
    return values or None


def with_options(config: Config, device_kind: str) -> Config:
    """The configuration with the options that `auto` stands for on such devices."""
    options = step_options(config.compiler, device_kind)
    return config.model_copy(update={"compiler": config.compiler.model_copy(update={"options": options})})


@contextlib.contextmanager
def refused_options() -> Iterator[None]:
    """The compiler's refusal of an option, as a `ConfigError` that names it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        if match := re.search(r"No such compile option: '(\w+)'", reason):
            raise ConfigError(f"compiler.options: {match[1]} is no option of this compiler; take it out") from None
        if match := re.search(r"into flag (\w+)|While setting option (\w+)", reason):
            raise ConfigError(f"compiler.options.{match[1] or match[2]}: {reason.partition(': ')[2]}") from None
        raise
