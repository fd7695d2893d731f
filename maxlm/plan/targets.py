"""What XLA has to know of a GPU that is not there to compile for it: its target description, a text proto.

Memory and its bandwidth are those of `maxlm.parallel.hardware`. The rest is NVIDIA's: white papers of the A100, H100
and Blackwell architectures (multiprocessors, caches, clocks), and the table of compute capabilities in the CUDA C++
Programming Guide (shared memory, registers, threads and float32 units of a multiprocessor).
"""

from typing import NamedTuple

from maxlm.parallel.hardware import GPU_MEMORY_FRACTION, Chip


class Gpu(NamedTuple):
    capability: tuple[int, int]
    multiprocessors: int
    float32_units: int  # of a multiprocessor
    shared_memory: int  # KiB of a multiprocessor, of which 1 is the system's in every block
    l2_cache: int  # MiB
    clock: float  # GHz, boosted


_A100 = Gpu((8, 0), multiprocessors=108, float32_units=64, shared_memory=164, l2_cache=40, clock=1.41)
_H100 = Gpu((9, 0), multiprocessors=132, float32_units=128, shared_memory=228, l2_cache=50, clock=1.98)
# By the names of `hardware.CHIPS`.
GPUS: dict[str, Gpu] = {
    "a100-40gb": _A100,
    "a100-80gb": _A100,
    "h100": _H100,
    "h100-pcie": _H100._replace(multiprocessors=114, clock=1.755),
    "h200": _H100,
    "b200": Gpu((10, 0), multiprocessors=148, float32_units=128, shared_memory=228, l2_cache=126, clock=1.965),
}


def target_config(chip: Chip) -> str:
    """The description of an NVIDIA GPU as the CUDA plugin's `target_config` takes it."""
    gpu = GPUS[chip.name]
    return f"""
platform_name: "CUDA"
device_description_str: "{chip.kinds[0]}"
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.float32_units}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {round(chip.hbm_bytes / GPU_MEMORY_FRACTION)}
  memory_bandwidth: {round(chip.hbm_bandwidth)}
  l2_cache_size: {gpu.l2_cache * 2**20}
  shared_memory_per_core: {gpu.shared_memory * 1024}
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {(gpu.shared_memory - 1) * 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
