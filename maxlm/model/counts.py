"""Parameters and floating-point operations, counted from the model's own abstract tree."""

import math
from collections.abc import Iterator

import jax

from maxlm.config import ModelConfig
from maxlm.model.decoder import STACK_AXES, abstract
from maxlm.model.layers import TABLE


def parameter_count(config: ModelConfig) -> int:
    """All parameters, embeddings included."""
    _, shapes, _ = abstract(config)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def active_parameter_count(config: ModelConfig) -> int:
    """Parameters that one token meets: all but the experts that it does not pass; embeddings included."""
    return sum(size for _, size in _active(config))


def matmul_parameter_count(config: ModelConfig) -> int:
    """Parameters that multiply a token: of the active ones all matrices but the embedding look-up.

    A tied table counts once.
    """
    matrices = sum(size for names, size in _active(config) if names != TABLE and _dimensions(names) > 1)
    return matrices + config.tie_embeddings * config.vocab_size * config.embed_dim


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Training FLOPs per token, forward and backward, nothing recomputed.

    6 per matmul parameter (2 forward, 4 backward), and 12 * heads * head_dim per layer for each key that a query
    sees on average: (seq_len + 1) / 2 of them under a causal mask, fewer within a window; document masks are not
    deducted.
    """
    keys = sum(_mean_keys(seq_len, config.window_of(layer)) for layer in range(config.num_layers))
    return 6.0 * matmul_parameter_count(config) + 12.0 * config.num_heads * config.head_dim * keys


def _active(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], int]]:
    """Logical axes of every parameter, and how many of its numbers a token meets."""
    _, shapes, axes = abstract(config)
    for shape, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=_is_axes), strict=True):
        size = math.prod(shape.shape)
        if "experts" in names:
            size = size // config.moe.num_experts * config.moe.experts_per_token
        yield names, size


def _dimensions(names: tuple[str, ...]) -> int:
    return len([name for name in names if name not in STACK_AXES])


def _mean_keys(seq_len: int, window: int | None) -> float:
    window = min(window or seq_len, seq_len)
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def _is_axes(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
