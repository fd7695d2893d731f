"""Peak arithmetic of devices, for model FLOPs utilisation (MFU).

Dense bfloat16 peak in FLOP/s per JAX device, from the vendors' data sheets (NVIDIA quotes twice these with
structured sparsity). A TPU v4 or v5p chip is one JAX device. A kind that is not listed has no MFU rather than a
wrong one.
"""

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
