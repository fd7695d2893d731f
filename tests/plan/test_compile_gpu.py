"""The train step for NVIDIA GPUs that are not there: two layers of real width, where JAX's CUDA plugin is installed."""

import functools
import math

import gpus
import jax
import pytest
from jax.experimental import topologies
from tiny import run_config

from maxlm.config import Config
from maxlm.errors import ConfigError
from maxlm.parallel.hardware import CHIPS, system
from maxlm.parallel.traffic import table, transfers
from maxlm.plan.compile import CompiledStep, compile_for, topology_devices
from maxlm.plan.targets import GPUS, target_config

TOKENS = 2048  # on each GPU


needs_plugin = pytest.mark.skipif(not gpus.has_plugin(), reason="no CUDA plugin (extra plan-gpu)")


def wide_config(devices: int, **mesh: int) -> Config:
    model = {
        "vocab_size": 6144,
        "num_layers": 2,
        "embed_dim": 2048,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "mlp_dim": 5504,
    }
    data = {"seq_len": 1024, "mixture": [{"tokens": devices * TOKENS * 100, "weights": {"web": 1}}]}
    train = {"batch_tokens": devices * TOKENS}
    return run_config(model=model, data=data, train=train, mesh={"fsdp": 1} | mesh, remat={"policy": "full"})


@functools.cache
def two_nodes() -> CompiledStep:
    with jax.default_matmul_precision("default"):
        return compile_for(wide_config(16, data=2, fsdp=8), "h100x16", quick=True)


@needs_plugin
def test_parameters_travel_within_a_node_and_sums_of_gradients_between() -> None:
    step = two_nodes()
    nodes = [{device.process_index for device in row} for row in step.mesh.devices.reshape(2, 8)]
    assert nodes == [{0}, {1}]
    rows = {(row.axis, row.opcode): row.bytes for row in table(transfers(step.executable.as_text(), step.mesh))}
    layers = 2 * (2048 * 128 * (16 + 8 + 8 + 16) + 3 * 2048 * 5504)
    tables = 2 * 6144 * 2048
    # In bfloat16, each sends 7 / 8: all parameters for the forward pass, and the layers' again for the backward pass.
    assert rows["fsdp", "all-gather"] == pytest.approx((2 * layers + tables) * 7 / 8 * 2, rel=0.1)
    # Their gradients once; that of the head is summed in float32.
    assert rows["fsdp", "reduce-scatter"] == pytest.approx((layers + tables * 1.5) * 7 / 8 * 2, rel=0.1)
    assert rows["data", "all-reduce"] == pytest.approx((layers + tables * 1.5) / 8 * 2, rel=0.1)
    small = {name: sent for name, sent in rows.items() if sent < 2**20}
    assert len(rows) - len(small) == 3


@needs_plugin
def test_attention_is_the_packed_kernel() -> None:
    """Documents are masked by default; the backward pass runs the forward kernel again and two of its own."""
    assert two_nodes().executable.as_text().count('custom_call_target="__gpu$xla.gpu.triton"') >= 4


@needs_plugin
def test_memory_is_that_of_one_gpu() -> None:
    step = two_nodes()
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step.plan.abstract.params))
    memory = step.memory()
    assert memory["argument"] == pytest.approx(12 * parameters / 8, rel=0.05)  # parameters and two moments
    assert memory["alias"] == pytest.approx(memory["output"], rel=0.01)
    assert memory["argument"] < memory["peak"] <= memory["sum"]


@needs_plugin
@pytest.mark.parametrize("chip", GPUS)
def test_every_gpu_can_be_described(chip: str) -> None:
    (device,) = gpus.devices(chip)
    assert (device.platform, device.device_kind) == ("gpu", CHIPS[chip].kinds[0])


def test_every_gpu_of_the_hardware_table_has_a_target() -> None:
    assert set(GPUS) == {chip.name for chip in CHIPS.values() if chip.platform == "cuda"}
    assert "device_memory_size: 85520809984" in target_config(CHIPS["h100"])  # 81559 MiB


def test_without_the_plugin_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(**options):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    with pytest.raises(ConfigError, match=r"h100x8.*maxlm\[plan-gpu\]"):
        topology_devices(system("h100x8"))


def test_without_the_assembler_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: No PTX compilation provider is available.")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    monkeypatch.setattr("maxlm.plan.compile.topology_devices", lambda *_: jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"ptxas.*maxlm\[plan-gpu\]"):
        compile_for(wide_config(1), "h100x1")
