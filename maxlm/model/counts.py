"""Parameters and floating-point operations, counted from the model's own abstract tree."""

import math

import jax

from maxlm.config import ModelConfig
from maxlm.model.decoder import STACK_AXES, abstract
from maxlm.model.layers import TABLE


def parameter_count(config: ModelConfig) -> int:
    """All parameters, embeddings included."""
    _, shapes, _ = abstract(config)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matmul_parameter_count(config: ModelConfig) -> float:
    """Parameters that multiply a token: all matrices but the embedding look-up, and of the experts those it passes.

    A tied table counts once.
    """
    _, shapes, axes = abstract(config)
    share = config.moe.experts_per_token / config.moe.num_experts if config.moe else 1
    total = config.tie_embeddings * config.vocab_size * config.embed_dim
    for shape, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=_is_axes), strict=True):
        if names != TABLE and len([name for name in names if name not in STACK_AXES]) > 1:
            total += math.prod(shape.shape) * (share if "experts" in names else 1)
    return total


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Training FLOPs per token, forward and backward, nothing recomputed.

    6 per matmul parameter (2 forward, 4 backward), and 12 * heads * head_dim per layer for each key that a query
    sees on average: (seq_len + 1) / 2 of them under a causal mask, fewer within a window; document masks are not
    deducted.
    """
    keys = sum(_mean_keys(seq_len, config.window_of(layer)) for layer in range(config.num_layers))
    return 6.0 * matmul_parameter_count(config) + 12.0 * config.num_heads * config.head_dim * keys


def _mean_keys(seq_len: int, window: int | None) -> float:
    window = min(window or seq_len, seq_len)
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def _is_axes(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
