"""Settings of the JAX process, made once by a command before it touches a device."""

import logging
import os
import re
from pathlib import Path

import jax

from maxlm.config import ProcessesConfig
from maxlm.parallel import processes
from maxlm.parallel.hardware import GPU_MEMORY_FRACTION

# Where there is no TPU, libtpu asks these of nobody and prints half a page of warnings (libtpu 0.0.42). The type of
# accelerator may be whichever.
NO_TPU = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}

# XLA's CPU client has as many threads as cores or devices, or NPROC. One waits for the others of a collective, or for
# room among the 32 programs in flight of its device; where all wait, XLA ends the process after 40 s (jaxlib 0.10.2:
# 64 small programs behind a slow one did so on 8 devices with 8, 9 and 12 threads, never with 16 or more).
THREADS_PER_VIRTUAL_DEVICE = 4


def setup(joined: ProcessesConfig | None = None) -> None:
    """Turn on the persistent compilation cache: `JAX_COMPILATION_CACHE_DIR`, else the user's cache directory; with
    `joined`, come together with the other processes of the command first."""
    # These two are read when a device is first touched.
    if virtual := _virtual_devices():
        os.environ.setdefault("NPROC", str(max(os.cpu_count() or 1, THREADS_PER_VIRTUAL_DEVICE * virtual)))
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    if joined:
        processes.join(joined)
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":  # as jax sets it when it is imported where there is no TPU
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)
    # Orbax logs with a traceback what its threads also raise; people are told once, by the error.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "maxlm" / "jax"))
    # The many small programs of a start together cost seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _virtual_devices() -> int:
    """How many devices the CPU is to be; 0 if nothing says so."""
    flag = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(0, jax.config.jax_num_cpu_devices, int(flag[1]) if flag else 0)
