"""Floating-point operations of a compiled program, counted from its text.

XLA's own cost analysis counts the body of a loop once, sees none in custom kernels, and is absent where a program was
compiled for a GPU that is not there. Counted here: matrix products, which TPU programs write as convolutions, and
custom kernels by what they declare or by the formulas below; loops by their trip counts, a conditional by its most
expensive branch. Element-wise work is not counted.

A kernel's work may depend on data, of which the shapes say only the worst case. `Workload` tells what is expected.
"""

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from maxlm.config import Config
from maxlm.model.counts import mean_keys
from maxlm.parallel import hlo
from maxlm.parallel.hlo import Computation, Instruction
from maxlm.parallel.walk import Found, walk

_DECLARED = re.compile(r'"cost_estimate":\{"flops":"?(\d+)')
# Attention kernels by name, with the products that they compute which are as wide as keys, and as values, and the place
# of the values among the operands that are numbers per head, queries first: scores and mixing forward; backward the
# scores again and the gradients of probabilities, queries, keys and values, some twice where kernels are apart. cuDNN
# knows one width.
_ATTENTION = {
    r"splash_m[hq]a_fwd": (1, 1, 2),
    r"splash_m[hq]a_dq": (2, 1, 2),
    r"splash_m[hq]a_dkv": (2, 2, 2),
    r"flash_forward": (1, 1, 2),
    r"flash_queries_gradient": (2, 1, 3),
    r"flash_keys_gradient": (2, 2, 3),
    r"__cudnn\$fmha\w*Backward": (3, 2, 0),
    r"__cudnn\$fmha": (1, 1, 0),
}
# Kernels over the rows of a buffer that experts fill in part; they skip the tiles that are empty.
_GROUPED = re.compile(r"\bt?gmm\b")


@dataclass(frozen=True)
class Workload:
    """What is expected of kernels whose work depends on data."""

    keys: float = math.nan  # that a query sees, averaged over layers and positions
    filled: float = 1.0  # share of the rows of experts' buffers that hold a token

    @classmethod
    def of(cls, config: Config, experts: int) -> "Workload":
        """Of a configuration with this many devices over the mesh's expert axis, at an even load."""
        model, moe, filled = config.model, config.model.moe, 1.0
        if moe is not None and experts > 1:
            filled = moe.experts_per_token / (experts * min(moe.experts_per_token, moe.num_experts // experts))
        windows = [model.window_of(layer) for layer in range(model.num_layers)]
        keys = sum(mean_keys(config.data.seq_len, window) for window in windows) / model.num_layers
        return cls(keys, filled)


@dataclass(frozen=True, kw_only=True)
class Product(Found):
    """One operation with floating-point work."""

    kind: str  # dot | convolution | attention | kernel
    flops: float  # each time; NaN where they are not known

    @property
    def total(self) -> float:
        return self.flops * self.count


def matmul_flops(text: str, workload: Workload = Workload()) -> float:
    """FLOPs of one call of the program with this optimised HLO text, on one device.

    Raises ValueError where a trip count does not follow from constants, or the work of a kernel is not known.
    """
    found = list(products(text, workload))
    if unknown := sorted({product.where for product in found if math.isnan(product.total)}):
        raise ValueError(f"the FLOPs of {', '.join(unknown[:3])} do not follow from the program")
    return math.fsum(product.total for product in found)


def products(text: str, workload: Workload = Workload()) -> Iterator[Product]:
    """Everything with floating-point work, in the order of the text; raises ValueError for text that is no program."""

    def leaf(instruction: Instruction, inside: Computation, where: str) -> list[Product] | None:
        if instruction.opcode not in ("dot", "convolution", "custom-call"):
            return None
        shapes = [inside.instructions[name].shape for name in instruction.operands]
        if instruction.opcode == "custom-call":
            return _kernel(instruction, shapes, where, workload)
        count = dot_flops if instruction.opcode == "dot" else convolution_flops
        return [Product(kind=instruction.opcode, flops=count(instruction, shapes), where=where)]

    return walk(hlo.parse(text), leaf, _size)


def _size(product: Product) -> float:
    return math.inf if math.isnan(product.total) else product.total


def dot_flops(instruction: Instruction, shapes: list[str]) -> float:
    """2 for each number of the result and each number that is summed over."""
    contracted = _numbers(instruction.attributes, "lhs_contracting_dims")
    left = hlo.dimensions(shapes[0])
    return 2.0 * math.prod(hlo.dimensions(instruction.shape)) * math.prod(left[axis] for axis in contracted)


def convolution_flops(instruction: Instruction, shapes: list[str]) -> float:
    """2 for each input feature of each pair of an output and a kernel position that meets the input.

    Positions that meet padding, or a hole of a dilated input, are not computed: matrix products with a batch become
    convolutions in which all but one of each row of pairs are such.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    sizes = [hlo.dimensions(shape) for shape in (*shapes[:2], instruction.shape)]
    inputs, kernel, outputs = (
        dict(zip(names, size, strict=True)) for names, size in zip(labels.groups(), sizes, strict=True)
    )
    spatial = sorted(label for label in outputs if label.isdigit())
    windows = _windows(instruction.attributes, len(spatial))
    pairs = (
        _meeting_pairs(inputs[label], outputs[label], kernel[label], *window)
        for label, window in zip(spatial, windows, strict=True)
    )
    features = outputs["b"] * outputs["f"] * kernel["i"] / (instruction.number("batch_group_count") or 1)
    return 2.0 * features * math.prod(pairs)


def _windows(attributes: str, rank: int) -> list[tuple[int, int, int, int]]:
    """Padding before, stride, dilation of the input and of the kernel, for each spatial axis."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    found = dict(part.split("=", 1) for part in text[1].split()) if text else {}
    parts = [found.get(key, "x".join(["1"] * rank)).split("x") for key in ("stride", "lhs_dilate", "rhs_dilate")]
    padding = found.get("pad", "x".join(["0_0"] * rank)).split("x")
    return [
        (int(before.split("_")[0]), *map(int, others))
        for before, *others in (zip(padding, *parts, strict=True) if rank else ())
    ]


@functools.cache
def _meeting_pairs(
    inputs: int, outputs: int, kernel: int, padding: int, stride: int, input_dilation: int, kernel_dilation: int
) -> int:
    """Pairs of positions (output, kernel) that meet a number of the input, along one axis."""
    last = (inputs - 1) * input_dilation
    count = 0
    for position in range(kernel):
        first = position * kernel_dilation - padding  # of the dilated input, which output 0 meets there
        # Outputs o with 0 <= first + o stride <= last, where that is a multiple of the dilation.
        low, high = max(0, -(first // stride)), min(outputs - 1, (last - first) // stride)
        if input_dilation == 1:
            count += max(0, high - low + 1)
        else:
            count += sum((first + output * stride) % input_dilation == 0 for output in range(low, high + 1))
    return count


def _kernel(instruction: Instruction, shapes: list[str], where: str, workload: Workload) -> list[Product]:
    """A custom kernel's work; nothing for what is no kernel."""
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    target = found[1] if found else ""
    name = f"{target} {instruction.name} {where}"
    for pattern, (of_keys, of_values, place) in _ATTENTION.items():
        if re.search(pattern, name):
            operands = _numbers_of_heads(shapes)
            *rows, width = operands[0]
            widths = of_keys * width + of_values * operands[place][-1]
            flops = 2.0 * math.prod(rows) * widths * workload.keys
            return [Product(kind="attention", flops=flops, where=where)]
    if target.startswith("__cublas$"):
        return [Product(kind="dot", flops=_gemm_flops(instruction, shapes), where=where)]
    if declared := _DECLARED.search(instruction.attributes):
        filled = workload.filled if _GROUPED.search(name) else 1.0
        return [Product(kind="kernel", flops=float(declared[1]) * filled, where=where)]
    is_kernel = target == "tpu_custom_call" or "triton" in target
    return [Product(kind="kernel", flops=math.nan, where=where)] if is_kernel else []


def _numbers_of_heads(shapes: list[str]) -> list[tuple[int, ...]]:
    """Sizes of the operands that are numbers per head: masks and positions are integers."""
    return [hlo.dimensions(shape) for shape in shapes if len(hlo.dimensions(shape)) > 2 and shape[0] in "bf"]


def _gemm_flops(instruction: Instruction, shapes: list[str]) -> float:
    """Of a call of cuBLAS, whose numbers of dimensions stand in its configuration."""
    config = json.loads(re.search(r"backend_config=(\{.*\})", instruction.attributes)[1])
    numbers = config["gemm_backend_config"]["dot_dimension_numbers"]
    left = hlo.dimensions(shapes[0])
    contracted = math.prod(left[int(axis)] for axis in numbers["lhs_contracting_dimensions"])
    return 2.0 * math.prod(hlo.dimensions(hlo.elements(instruction.shape)[0])) * contracted


def _numbers(attributes: str, key: str) -> list[int]:
    found = re.search(rf"\b{key}=\{{([\d,]*)\}}", attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []
