"""What accelerators can do: the peak of their arithmetic, their memory and their links.

`CHIPS` describes one JAX device of each kind; `system` reads the names of slices and clusters ("v5p-128", "h100x8").
Peaks are dense: NVIDIA quotes twice these with structured sparsity. A kind that is not listed has no figures rather
than wrong ones.

Sources. TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}. They state both directions of all links of a chip
together; a link in one direction is that, divided by 2 x 2 x torus_dims. NVIDIA: data sheets of A100, H100, H200, HGX
B200, and of DGX A100, H100 and B200 for the network; they state both directions of NVLink, here is one.
"""

import difflib
import math
import re
from dataclasses import dataclass, field

from maxlm.errors import ConfigError

GIB = 2**30

# XLA takes this part of a GPU's memory for its own; the rest is left to CUDA, cuBLAS, cuDNN and NCCL, which allocate
# beside it. JAX's default is 0.75, which leaves a fifth of the device idle (maxlm/parallel/runtime.py).
GPU_MEMORY_FRACTION = 0.92


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
    devices_per_chip: int = 1  # that JAX shows
    cores_per_chip: int = 1  # TensorCores, where the cloud's names of slices count them
    libtpu_options: dict[str, str] = field(default_factory=dict)  # of a topology

    @property
    def libtpu_name(self) -> str:
        return {"7x": "tpu7x"}.get(self.name, self.name)


@dataclass(frozen=True)
class System:
    """A TPU slice, or GPUs in nodes of `chip.node`."""

    name: str
    chip: Chip
    num_devices: int
    topology: str | None  # libtpu's name of the slice
    shape: tuple[int, ...]  # of the torus, in chips; of GPUs (nodes, GPUs of a node)

    @property
    def num_chips(self) -> int:
        return self.num_devices // self.chip.devices_per_chip

    @property
    def libtpu_options(self) -> dict:
        """Options of `get_topology_desc` besides the name, without which it shows other devices than a real slice."""
        one_host = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(self.shape) == 1 else {}
        return self.chip.libtpu_options | one_host


def _tpu(name: str, kinds: tuple[str, ...], gib: float, **figures) -> Chip:
    # JAX multiplies float32 on TPU in one pass of bfloat16 unless a higher precision is asked for.
    figures["flops"] = {"float32": figures["flops"]["bfloat16"]} | figures["flops"]
    return Chip(name=name, platform="tpu", kinds=kinds, hbm_bytes=int(gib * GIB), **figures)


def _gpu(name: str, kinds: tuple[str, ...], mib: int, *, node: int = 8, **figures) -> Chip:
    usable = int(mib * 2**20 * GPU_MEMORY_FRACTION)
    return Chip(name=name, platform="cuda", kinds=kinds, hbm_bytes=usable, torus_dims=0, node=node, **figures)


def _peaks(bfloat16: float, **others: float) -> dict[str, float]:
    """FLOP/s from TFLOP/s."""
    return {name: teraflops * 1e12 for name, teraflops in ({"bfloat16": bfloat16} | others).items()}


# A TPU's usable memory is what libtpu 0.0.42.1 names when a compiled program needs more. Where a TPU has no arithmetic
# of a type, the peak is that of bfloat16, to which the compiler converts it.
_TPUS = (
    _tpu(
        "v4",
        ("TPU v4",),
        30.75,  # of 32
        flops=_peaks(275, int8=275, fp8=275),
        hbm_bandwidth=1200e9,
        link_bandwidth=50e9,  # 300 GB/s each way over 6 links
        torus_dims=3,
        # Not in the documents: 81 Tbit/s between two pods of 768 hosts (Chowdhery et al. 2022, section 4).
        network_bandwidth=3.125e9,
        node=4,
        cores_per_chip=2,
        libtpu_options={"chip_config_name": "megacore"},  # one device a chip, as JAX shows it; else one a TensorCore
    ),
    _tpu(
        "v5e",
        ("TPU v5 lite", "TPU v5e"),
        15.75,  # of 16
        flops=_peaks(197, int8=393, fp8=197),
        hbm_bandwidth=819e9,
        link_bandwidth=50e9,  # 400 GB/s, both ways of 4 links
        torus_dims=2,
        network_bandwidth=3.125e9,  # 6.4 Tbit/s for 256 chips
        node=4,  # machines with 8 chips exist too, for slices of 8
    ),
    _tpu(
        "v5p",
        ("TPU v5", "TPU v5p"),
        95.74,  # stated as 95
        flops=_peaks(459, int8=918, fp8=459),
        hbm_bandwidth=2765e9,
        link_bandwidth=100e9,  # 1200 GB/s, both ways of 6 links
        torus_dims=3,
        network_bandwidth=6.25e9,
        node=4,
        cores_per_chip=2,
    ),
    _tpu(
        "v6e",
        ("TPU v6 lite", "TPU v6e"),
        31.25,  # of 32
        flops=_peaks(918, int8=1836, fp8=918),
        hbm_bandwidth=1638e9,
        link_bandwidth=100e9,  # 800 GB/s, both ways of 4 links
        torus_dims=2,
        network_bandwidth=12.5e9,
        node=4,  # as v5e
    ),
    # A chip is two dies, each of them a device: half of the sheet's 2307 and 4614 TFLOP/s, 192 GiB, 7380 GB/s, and of
    # the links, which the two share. (The faster link between the dies of a chip is not used by the estimates.)
    _tpu(
        "7x",
        ("TPU7x",),
        94.75,  # of 96
        flops=_peaks(1153.5, fp8=2307),
        hbm_bandwidth=3690e9,
        link_bandwidth=50e9,  # 1200 GB/s, both ways of 6 links, for two devices
        torus_dims=3,
        network_bandwidth=6.25e9,
        node=8,
        devices_per_chip=2,
        cores_per_chip=2,
    ),
)

# float32 is TF32, in which JAX multiplies float32 on these GPUs unless a higher precision is asked for. Memory is what
# nvidia-smi states, before the part that is left to other libraries. The A100 has no fp8.
_GPUS = (
    _gpu(
        "a100-40gb",
        ("NVIDIA A100-SXM4-40GB",),
        40960,
        flops=_peaks(312, float32=156, int8=624),
        hbm_bandwidth=1555e9,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
    ),
    _gpu(
        "a100-80gb",
        ("NVIDIA A100-SXM4-80GB",),
        81920,
        flops=_peaks(312, float32=156, int8=624),
        hbm_bandwidth=2039e9,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
    ),
    _gpu(
        "h100",
        ("NVIDIA H100 80GB HBM3",),
        81559,
        flops=_peaks(989.5, float32=494.7, int8=1979, fp8=1979),
        hbm_bandwidth=3350e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
    ),
    _gpu(
        "h100-pcie",
        ("NVIDIA H100 PCIe",),
        81559,
        flops=_peaks(756, float32=378, int8=1513, fp8=1513),
        hbm_bandwidth=2000e9,
        # PCIe 5.0 x 16, which all of a host share with all; NVLink bridges join pairs alone.
        link_bandwidth=64e9,
        network_bandwidth=25e9,  # assumed: one adapter of 400 Gbit/s for two GPUs
    ),
    _gpu(
        "h200",
        ("NVIDIA H200",),
        143771,
        flops=_peaks(989.5, float32=494.7, int8=1979, fp8=1979),
        hbm_bandwidth=4800e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
    ),
    _gpu(
        "b200",
        ("NVIDIA B200",),
        183359,
        flops=_peaks(2250, float32=1125, int8=4500, fp8=4500),
        hbm_bandwidth=8000e9,
        link_bandwidth=900e9,
        network_bandwidth=50e9,
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in (*_TPUS, *_GPUS)}

# Shapes that the cloud offers, in chips; libtpu knows all of them. Others go by libtpu's name ("v5p:4x4x12").
_SQUARE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SHAPES: dict[str, tuple[str, ...]] = {
    "v4": (*_CUBIC, "8x8x12"),
    "v5e": _SQUARE,
    "v5p": (*_CUBIC, "16x16x24"),
    "v6e": _SQUARE,
    "7x": (*_CUBIC, "16x24x24"),
}
_GENERATIONS = {"tpu7x": "7x", "v5litepod": "v5e"}  # other names of the cloud and of libtpu


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, or None for an unknown kind."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device, or None for an unknown kind."""
    chip = chip_of(device_kind)
    return chip.flops["bfloat16"] if chip else None


def system(name: str) -> System:
    """The slice or cluster of a name.

    TPU slices go by the cloud's names ("v5e-256", "v5p-128": of v4, v5p and 7x they count TensorCores, two a chip) or
    by libtpu's ("v5p:4x4x8"), GPUs by their number ("h100x64": nodes of 8). Raises `ConfigError` with the nearest
    names for any other.
    """
    found = _slice_of_shape(name) or _slice_of_size(name) or _gpus(name)
    if found is None:
        near = _near(name)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ConfigError(
            f"hardware {name!r} is not known{hint}; expected a chip of {', '.join(CHIPS)} in a form such as "
            "v5p-128, v6e-64, v5p:4x4x12 (libtpu's, in chips) or h100x64 (fewer than 8 GPUs, or nodes of 8)"
        )
    return found


def system_names() -> list[str]:
    """Every slice by the cloud's name, and usual numbers of each GPU."""
    slices = [f"{chip.name}-{size}" for chip in _TPUS for size in sorted(_sizes(chip))]
    return slices + [f"{chip.name}x{count}" for chip in _GPUS for count in (1, 8, 16, 32, 64, 128, 256, 512, 1024)]


def _near(name: str) -> list[str]:
    """Systems of the same chip and nearly the same size, else names that look alike."""
    number = re.search(r"(\d+)$", name)
    same = [other for other in system_names() if name.startswith(other[: re.search(r"[-x]\d+$", other).start()])]
    if same and number:
        size = max(int(number[1]), 1)
        same.sort(key=lambda other: abs(math.log(int(re.search(r"(\d+)$", other)[1]) / size)))
    return same[:3] or difflib.get_close_matches(name, system_names(), n=3, cutoff=0.5)


def _slice_of_shape(name: str) -> System | None:
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    chip = _generation(match[1]) if match else None
    if chip is None or len(_extent(match[2])) != chip.torus_dims or 0 in _extent(match[2]):
        return None
    return _slice(name, chip, match[2])


def _slice_of_size(name: str) -> System | None:
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    chip = _generation(match[1]) if match else None
    shape = _sizes(chip).get(int(match[2])) if chip else None
    return _slice(name, chip, shape) if shape else None


def _gpus(name: str) -> System | None:
    match = re.fullmatch(r"(.+)x(\d+)", name)
    chip, count = (CHIPS.get(match[1]), int(match[2])) if match else (None, 0)
    if chip is None or chip.platform != "cuda" or not count or (count > chip.node and count % chip.node):
        return None
    node = min(count, chip.node)
    return System(name, chip, count, None, (count // node, node))


def _generation(name: str) -> Chip | None:
    chip = CHIPS.get(_GENERATIONS.get(name, name))
    return chip if chip and chip.platform == "tpu" else None


def _sizes(chip: Chip) -> dict[int, str]:
    """Shapes by the number in the cloud's name."""
    return {math.prod(_extent(shape)) * chip.cores_per_chip: shape for shape in SHAPES[chip.name]}


def _extent(shape: str) -> tuple[int, ...]:
    return tuple(int(size) for size in shape.split("x"))


def _slice(name: str, chip: Chip, shape: str) -> System:
    extent = _extent(shape)
    topology = f"{chip.libtpu_name}:{shape}"
    return System(name, chip, math.prod(extent) * chip.devices_per_chip, topology, extent)
