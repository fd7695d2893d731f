"""Parameters and floating-point operations, counted from the model's own abstract tree."""

import math

import jax

from maxlm.config import ModelConfig
from maxlm.model.decoder import abstract


def parameter_count(config: ModelConfig) -> int:
    """All parameters, embeddings included."""
    _, shapes, _ = abstract(config)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matmul_parameter_count(config: ModelConfig) -> int:
    """Parameters that multiply every token: all matrices but the embedding look-up; a tied table counts once."""
    _, shapes, axes = abstract(config)
    matrices = [
        math.prod(shape.shape)
        for shape, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=_is_axes), strict=True)
        if "norm" not in names and names != ("vocab", "embed")
    ]
    return sum(matrices) + config.tie_embeddings * config.vocab_size * config.embed_dim


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Training FLOPs per token, forward and backward, nothing recomputed.

    6 per matmul parameter (2 forward, 4 backward), and 12 * heads * head_dim per layer for each key that a query
    sees on average: (seq_len + 1) / 2 of them under a causal mask, fewer within a window; document masks are not
    deducted.
    """
    repeats = config.num_layers // len(config.window_pattern)
    keys = repeats * sum(_mean_keys(seq_len, window) for window in config.window_pattern)
    return 6.0 * matmul_parameter_count(config) + 12.0 * config.num_heads * config.head_dim * keys


def _mean_keys(seq_len: int, window: int | None) -> float:
    window = min(window or seq_len, seq_len)
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def _is_axes(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
