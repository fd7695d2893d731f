"""Weights and tokens that follow from names alone: the same on every machine and in every version of numpy.

The golden files hold what `transformers` computes with these weights; a test draws the same ones and asks the same of
our decoder. Numbers are made of the generator's raw bits, which numpy keeps stable over its versions, unlike what its
distributions make of them (NEP 19).
"""

import hashlib
import math

import numpy as np


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 numbers of mean 0 and variance 1, spread evenly."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(math.prod(shape))
    return ((bits >> np.uint64(11)) * 2.0**-52 - 1).reshape(shape) * math.sqrt(3)


def tensor(seed: int, name: str, shape: tuple[int, ...], norm_mean: float = 1.0) -> np.ndarray:
    """A tensor of a Hugging Face file, float32, of a size by which every part of a model shows in its logits.

    Norms lie around `norm_mean` (0 where they are stored less one). Routers are larger than other matrices, so that
    experts are far from a tie. No tensor is constant or symmetric: one that is swapped or transposed shows.
    """
    values = uniform(f"{seed} {name}", tuple(shape))
    if len(shape) == 1:
        values = 0.2 * values + (norm_mean if "norm" in name or ".ln_" in name else 0.0) * name.endswith(".weight")
    elif "embed" in name or ".wte." in name or ".wpe." in name:
        values = 0.5 * values
    elif name.endswith(".gate.weight"):
        values = values * 3 / math.sqrt(shape[1])
    else:
        values = values * math.prod(shape) ** -0.25  # Linear and GPT-2's transposed layers alike
    return values.astype(np.float32)


def direction(number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a tensor's gradient is multiplied with, float64: one number by which any of its entries would show."""
    return uniform(f"direction {number} {name}", tuple(shape))


def norm_mean(model_type: str) -> float:
    """Around what a family's norms lie: Gemma stores them less one."""
    return 0.0 if model_type.startswith("gemma") else 1.0


def tokens(seed: int, name: str, length: int, vocab_size: int) -> np.ndarray:
    """int32 [length], each of the vocabulary as likely as any other."""
    unit = (uniform(f"{seed} {name}", (length,)) / math.sqrt(3) + 1) / 2
    return np.minimum(unit * vocab_size, vocab_size - 1).astype(np.int32)
