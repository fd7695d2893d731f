"""What a command sets before it touches a device."""

import os
import subprocess
import sys

SETUP = "import jax; from maxlm.parallel import runtime; runtime.setup(); print(jax.default_backend())"


def test_a_machine_without_tpu_prints_nothing_of_one() -> None:
    """Though libtpu is installed, which looks for one."""
    chosen = {key: value for key, value in os.environ.items() if key not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", SETUP], env=chosen, capture_output=True, text=True, check=True)
    assert done.stdout.strip() and "TPU" not in done.stderr


MANY_PROGRAMS = """
from maxlm.parallel import runtime
runtime.setup()
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
rows, columns = (NamedSharding(mesh, P(*axes)) for axes in (("devices", None), (None, "devices")))
x = jax.device_put(jnp.ones((256, 256)), rows)
slow = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: jnp.cos(y @ x), x), out_shardings=rows)
turned = jax.jit(lambda x: x + 1, out_shardings=columns)
for _ in range(30):
    y = slow(x)
    jax.block_until_ready([turned(y) for _ in range(64)])
"""


def test_many_programs_in_flight_on_virtual_devices_do_not_stop_each_other() -> None:
    """With a thread per device, each waits for a collective or for room behind those that wait for it."""
    chosen = {key: value for key, value in os.environ.items() if key != "NPROC"}
    chosen["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    done = subprocess.run([sys.executable, "-c", MANY_PROGRAMS], env=chosen, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_few_virtual_devices_keep_a_thread_for_every_core() -> None:
    asked = "import os; os.cpu_count = lambda: 64; from maxlm.parallel import runtime; runtime.setup()"
    chosen = {key: value for key, value in os.environ.items() if key not in ("NPROC", "XLA_FLAGS")}
    for devices, threads in (("1", "64"), ("32", "128")):
        command = [sys.executable, "-c", asked + "; print(os.environ['NPROC'])"]
        env = chosen | {"JAX_NUM_CPU_DEVICES": devices}
        assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip() == threads
