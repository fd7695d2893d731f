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
