"""XLA's options: those of the table, those of a configuration, and what the compiler refuses."""

import jax
import numpy as np
import pytest
from tiny import run_config

from maxlm.errors import ConfigError
from maxlm.parallel.compiler import TABLE, jit_options, refused_options, step_options, with_options
from maxlm.parallel.hardware import CHIPS, system
from maxlm.parallel.mesh import build_mesh
from maxlm.train.state import abstract_batch, abstract_state, blueprint, replicated_scalar
from maxlm.train.step import compile_step


def test_the_table_names_chips_and_gives_each_option_once() -> None:
    pairs = [(chip, row.option) for row in TABLE for chip in row.chips]
    assert len(pairs) == len(set(pairs))
    assert {chip for chip, _ in pairs} <= set(CHIPS)
    assert all(row.why for row in TABLE)


def test_a_configuration_takes_the_place_of_the_table() -> None:
    row, config = TABLE[0], run_config()
    kind = CHIPS[row.chips[0]].kinds[0]
    assert step_options(config.compiler, kind)[row.option] == row.value
    assert step_options(config.compiler, "cpu") == {}
    own = run_config(compiler={"options": {"xla_a": True, "xla_b": 7}})
    assert step_options(own.compiler, kind) == {"xla_a": "true", "xla_b": "7"}


def test_resolved_options_resolve_to_themselves() -> None:
    config = with_options(run_config(), CHIPS[TABLE[0].chips[0]].kinds[0])
    assert config.compiler.options != "auto"
    assert with_options(config, "cpu") == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xla_no_such": 1}, r"compiler.options: xla_no_such is no option of this compiler"),
        ({"xla_cpu_enable_fast_math": "perhaps"}, r"compiler.options.xla_cpu_enable_fast_math: .*'perhaps'"),
    ],
)
def test_a_refused_option_of_the_step_is_named(options: dict, message: str) -> None:
    config = run_config(compiler={"options": options})
    mesh = build_mesh(config.mesh)
    plan = blueprint(config, mesh, 1)
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match=message), refused_options():
        compile_step(plan).lower(
            abstract_state(plan), abstract_batch(plan), replicated_scalar(plan, np.float32)
        ).compile()


def test_truth_values_reach_the_compiler() -> None:
    options = run_config(compiler={"options": {"xla_cpu_enable_fast_math": False}}).compiler.options
    assert jax.jit(lambda x: x + 1, compiler_options=jit_options(options))(1) == 2


@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4", "7x-8"])
def test_libtpu_knows_the_options_of_its_chips(name: str) -> None:
    pytest.importorskip("libtpu")
    from maxlm.plan.compile import topology_devices

    device = topology_devices(system(name).topology)[0]
    options = jit_options(step_options(run_config().compiler, device.device_kind))
    x = jax.ShapeDtypeStruct((8, 128), np.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    jax.jit(lambda x: x + 1, compiler_options=options).trace(x).lower(lowering_platforms=("tpu",)).compile()
