"""Parameters and floating-point operations, counted from the model's own abstract tree."""

import functools
import math
from collections.abc import Iterator

import jax

from maxlm.config import ModelConfig
from maxlm.model.decoder import abstract
from maxlm.model.layers import is_matrix


def parameter_count(config: ModelConfig) -> int:
    """All parameters, embeddings included."""
    _, shapes, _ = abstract(config)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """All parameters by what they belong to, in the order of the tree; the values sum up to `parameter_count`.

    Parts follow from the names in the tree and from logical axes: `norms` of everything, `experts`, `router` and
    `shared`; other matrices and biases of a layer by their module (`attention`, `mlp`), and what stands outside the
    layers by its own name (`embedding`, `output`).
    """
    parts: dict[str, int] = {}
    for path, names, size in _parameters(config):
        part = _part(path, names)
        parts[part] = parts.get(part, 0) + size
    return parts


def active_parameter_count(config: ModelConfig) -> int:
    """Parameters that one token meets: all but the experts that it does not pass; embeddings included."""
    return sum(size for _, size in _active(config))


@functools.cache
def matmul_parameter_count(config: ModelConfig) -> int:
    """Parameters that multiply a token: of the active ones all matrices but the embedding look-up.

    A tied table counts once. Kept, since every step of a run asks, and to trace the model takes 15 ms and more.
    """
    matrices = sum(size for names, size in _active(config) if is_matrix(names))
    return matrices + config.tie_embeddings * config.vocab_size * config.embed_dim


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Training FLOPs per token, forward and backward, nothing recomputed: three times those of the forward pass.

    The backward pass has two products, by inputs and by weights, for each of the forward pass.
    """
    return 3 * sum(forward_flops_per_token(config, seq_len).values())


def forward_flops_per_token(config: ModelConfig, seq_len: int) -> dict[str, float]:
    """FLOPs of the forward pass per token, by part.

    `matrices`: 2 per matmul parameter. `attention`: 2 * heads * (head_dim + value_dim) per layer (scores and mixing)
    for each key that a query sees on average: (seq_len + 1) / 2 of them under a causal mask, which is counted once,
    fewer within a window; document masks are not deducted.
    """
    keys = sum(mean_keys(seq_len, config.window_of(layer)) for layer in range(config.num_layers))
    return {
        "matrices": 2.0 * matmul_parameter_count(config),
        "attention": 2.0 * config.num_heads * (config.head_dim + config.value_dim) * keys,
    }


def _parameters(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], int]]:
    """Path in the tree, logical axes and size of every parameter."""
    _, shapes, axes = abstract(config)
    leaves = jax.tree_util.tree_flatten_with_path(axes, is_leaf=_is_axes)[0]
    for shape, (path, names) in zip(jax.tree.leaves(shapes), leaves, strict=True):
        yield tuple(str(getattr(key, "key", key)) for key in path), names, math.prod(shape.shape)


def _part(path: tuple[str, ...], names: tuple[str, ...]) -> str:
    if any(name.endswith("norm") for name in path):
        return "norms"
    if "experts" in names:
        return "experts"
    if "experts_router" in names:
        return "router"
    if "shared" in path:
        return "shared"
    # Layers stand below the name and the number of their stack.
    return path[2] if len(path) > 2 else path[0]


def _active(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], int]]:
    """Logical axes of every parameter, and how many of its numbers a token meets."""
    for _, names, size in _parameters(config):
        if "experts" in names:
            size = size // config.moe.num_experts * config.moe.experts_per_token
        yield names, size


def mean_keys(seq_len: int, window: int | None) -> float:
    window = min(window or seq_len, seq_len)
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def _is_axes(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
