"""Compile the real train step for accelerators that are not there.

libtpu compiles for a named slice ("v5p:4x4x4"), the CUDA plugin for GPUs of a description (`targets.py`), both on a
machine with a CPU alone; neither data nor devices are touched. Of a proxy run's reference the configuration is read.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from maxlm.config import Config
from maxlm.errors import ConfigError
from maxlm.parallel import runtime
from maxlm.parallel.compiler import refused_options
from maxlm.parallel.hardware import System, system
from maxlm.parallel.mesh import build_mesh, check_batch
from maxlm.plan.targets import target_config
from maxlm.train.state import Blueprint, abstract_inputs, blueprint
from maxlm.train.step import compile_step

# Read when libtpu is loaded: it would otherwise ask a metadata server what it runs on, and hold a lock that keeps a
# second process from compiling.
LIBTPU = runtime.NO_TPU | {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# Read when JAX looks for plugins: this one would ask for CUDA's libraries, which only programs that run need. XLA says
# at each turn that there is no driver.
CUDA = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}

PLAN_GPU = "pip install 'maxlm[plan-gpu]'"


@dataclass(frozen=True)
class CompiledStep:
    """A train step compiled for a topology, with what it was made of."""

    plan: Blueprint
    executable: jax.stages.Compiled

    @property
    def mesh(self) -> Mesh:
        return self.plan.mesh

    def memory(self) -> dict[str, int]:
        """Bytes per chip by the compiler: the parts, their `sum` without aliases (it counts fragmentation), `peak`."""
        found = self.executable.memory_analysis()
        parts = {
            "argument": found.argument_size_in_bytes,
            "output": found.output_size_in_bytes,
            "temporary": found.temp_size_in_bytes,
            "alias": found.alias_size_in_bytes,
            "peak": found.peak_memory_in_bytes,
        }
        return parts | {"sum": parts["argument"] + parts["output"] + parts["temporary"] - parts["alias"]}


def topology_devices(topology: System | str, slices: int = 1) -> list:
    """The devices of as many TPU slices, or of a cluster of GPUs; by name: those that `system` knows.

    Raises `ConfigError` where the name is not known, or the compiler is not there.
    """
    found = _system(topology)
    return _gpus(found) if found.chip.platform == "cuda" else _tpus(found, slices)


def _system(topology: System | str) -> System:
    return system(topology) if isinstance(topology, str) else topology


def _tpus(found: System, slices: int) -> list:
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    options = found.libtpu_options
    # One slice is asked for without a number: numbered slices make a program that looks for its neighbours.
    options |= {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=found.topology, **options).devices)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"topology {found.name}: {reason}; expected a name such as v5p:2x2x2 or v6e:4x4, and libtpu (extra 'plan')"
        ) from error


def _gpus(found: System) -> list:
    for name, value in CUDA.items():
        os.environ.setdefault(name, value)
    # One clique of as many processes as there are nodes; devices are numbered along the nodes.
    nodes, size = found.shape
    options = {"topology": f"1x{nodes}x{size}", "target_config": target_config(found.chip)}
    try:
        return list(topologies.get_topology_desc(platform="cuda", topology_name="", **options).devices)
    except NotImplementedError as error:
        raise ConfigError(
            f"hardware {found.name}: compiling for it needs JAX's CUDA plugin, and no GPU; {PLAN_GPU}"
        ) from error


def deviceless_mesh(config: Config, topology: System | str) -> Mesh:
    """The mesh that the configuration asks for, over the devices of its `mesh.slices` slices."""
    return build_mesh(config.mesh, topology_devices(topology, config.mesh.slices))


def compile_for(config: Config, topology: System | str, quick: bool = False) -> CompiledStep:
    """Compile the configuration's train step for `mesh.slices` such slices; of GPUs, for the system as it is.

    Raises `ConfigError` where its sizes do not divide.

    `quick` takes a third of the time or less on TPU, for tests. The program is partitioned as it would be otherwise,
    but it is not the real one: some conversions stay behind the gathers that they should precede, so it moves float32
    where the real one moves bfloat16; some reductions stay in loops that they could leave; and its memory is another.
    """
    mesh = deviceless_mesh(config, topology)
    check_batch(config, mesh)
    plan = blueprint(config, mesh, len(config.data.sources))
    with jax.set_mesh(mesh), _optimization_level("O0" if quick else jax.config.jax_optimization_level):
        lowered = (
            compile_step(plan)
            .trace(*abstract_inputs(plan))
            .lower(lowering_platforms=(_system(topology).chip.platform,))
        )
        with refused_options(), _ptxas_is_named():
            return CompiledStep(plan, lowered.compile())


@contextlib.contextmanager
def _ptxas_is_named() -> Iterator[None]:
    """A missing assembler of CUDA's as a `ConfigError` that says where it comes from."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "No PTX compilation provider" not in str(error):
            raise
        raise ConfigError(f"compiling for NVIDIA GPUs needs CUDA's assembler ptxas; {PLAN_GPU}") from error


@contextlib.contextmanager
def _optimization_level(level: str) -> Iterator[None]:
    # As a compiler option, jax 0.10 wants a number here and jax 0.12 a name.
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)
