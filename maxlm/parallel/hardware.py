"""What accelerators can do: the peak of their arithmetic, their memory and their links.

`CHIPS` describes one JAX device of each kind; `system` reads the names of slices and clusters ("v5p-128", "h100x8").
Peaks are dense: NVIDIA quotes twice these with structured sparsity. A kind that is not listed has no figures rather
than wrong ones.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One JAX device. Bandwidths are bytes/s in one direction."""

    name: str
    platform: str  # tpu | cuda
    kinds: tuple[str, ...]  # as jax.Device.device_kind names it
    flops: dict[str, float]  # dense peak by type, FLOP/s
    hbm_bytes: int  # what a program may use
    hbm_bandwidth: float
    link_bandwidth: float  # of one ICI link, or of all NVLinks of a GPU together
    torus_dims: int  # ICI links leave in both directions of as many dimensions; 0: every device of a node reaches all
    network_bandwidth: float  # of the data-centre network, per device
    node: int  # devices that share a host (GPUs: an NVLink domain)


@dataclass(frozen=True)
class System:
    """A TPU slice, or GPUs in nodes of `chip.node`."""

    name: str
    chip: Chip
    num_devices: int
    topology: str | None  # libtpu's name of the slice
    shape: tuple[int, ...]  # of the torus; of GPUs (nodes, GPUs of a node)


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; NVIDIA A100, H100, H200 and B200 data sheets.
DENSE_BF16_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device, or None for an unknown kind."""
    return DENSE_BF16_FLOPS.get(device_kind)
