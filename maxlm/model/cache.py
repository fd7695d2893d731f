"""What decoding remembers of the tokens so far. Axis letters as in layers.py."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.config import ModelConfig
from maxlm.model.positions import rotation_lengths
from maxlm.parallel.sharding import shard

KEYS = ("batch", None, "kv_heads", None)  # logical axes of cached keys and values
TOKENS = ("batch", None)  # and of what is known of their tokens


class Seen(NamedTuple):
    """What new tokens may look at: of each key its value, its token's document, and that token's number."""

    key_BTKE: jax.Array
    value_BTKE: jax.Array | None
    segment_ids_BT: jax.Array
    number_T: jax.Array


class KeyValues(NamedTuple):
    """Rotated keys, and values, of a layer's last T tokens; the token with number n is in slot n mod T.

    Numbers count columns, padding included. Layers with a window have at most as many slots as that is wide; others
    have one for every token, so that nothing that is seen is ever overwritten.
    """

    key_BTKE: jax.Array
    value_BTKE: jax.Array | None  # None where keys are the values
    segment_ids_BT: jax.Array  # 0 where a slot holds padding, or nothing
    length: jax.Array  # int32 scalar, how many tokens there have been

    def extend(self, k_BSKE, v_BSKE, segment_ids_BS, window: int | None) -> tuple[Seen, "KeyValues"]:
        """What S new tokens see, themselves included, and the cache with them."""
        count, slots = segment_ids_BS.shape[1], self.segment_ids_BT.shape[1]
        old, new = (self.key_BTKE, self.value_BTKE, self.segment_ids_BT), (k_BSKE, v_BSKE, segment_ids_BS)
        length = self.length + count
        if window is None or slots < window or count == 1:
            start = self.length % slots
            kept = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, _as(y, x), start, axis=1), old, new)
            return Seen(*_sharded(kept), _numbers(length, slots)), KeyValues(*_sharded(kept), length)
        # The first of several tokens see what the last of them overwrite.
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, _as(y, x)], axis=1), old, new)
        number_T, place_T = _numbers(length, slots), jnp.arange(slots)
        from_T = jnp.where(number_T < self.length, place_T, slots + number_T - self.length)
        kept = jax.tree.map(lambda x: jnp.take(x, from_T, axis=1), both)
        numbers = jnp.concatenate([_numbers(self.length, slots), self.length + jnp.arange(count)])
        return Seen(*_sharded(both), numbers), KeyValues(*_sharded(kept), length)


def empty_keys(shape: tuple[int, ...], values: bool, dtype, stack: tuple[int, ...] = ()) -> KeyValues:
    """An empty cache of keys [B, T, K, E], and of values unless keys are the values.

    `stack` are leading axes, over layers. Every array is one of its own: callers donate them.
    """

    def zeros(shape: tuple[int, ...], axes: tuple, dtype) -> jax.Array:
        return shard(jnp.zeros((*stack, *shape), dtype), *(None for _ in stack), *axes)

    key, value = zeros(shape, KEYS, dtype), zeros(shape, KEYS, dtype) if values else None
    return KeyValues(key, value, zeros(shape[:2], TOKENS, jnp.int32), zeros((), (), jnp.int32))


def _numbers(length: jax.Array, slots: int) -> jax.Array:
    """The number of the token in each slot, int32 [T], after so many tokens; negative where there is none."""
    return length - 1 - (length - 1 - jnp.arange(slots)) % slots


def _as(new: jax.Array, old: jax.Array) -> jax.Array:
    return new.astype(old.dtype)


def _sharded(arrays: tuple) -> tuple:
    """Keys, values and segment ids as they are kept on a mesh."""
    return tuple(x if x is None else shard(x, *axes) for x, axes in zip(arrays, (KEYS, KEYS, TOKENS), strict=True))


class Text(NamedTuple):
    """The first `length` of T tokens, and by what their keys were rotated.

    It is kept where rotations depend on the length of a document. What any layer has made of any token changes with
    them, not the keys alone, and has to be computed again from the tokens.
    """

    tokens_BT: jax.Array
    segment_ids_BT: jax.Array
    positions_BT: jax.Array
    lengths_BT: jax.Array  # `rotation_lengths` of these tokens
    length: jax.Array

    def extend(self, tokens_BS, segment_ids_BS, positions_BS, config: ModelConfig) -> "Text":
        tokens_BT, segment_ids_BT, positions_BT = (
            shard(jax.lax.dynamic_update_slice_in_dim(old, _as(new, old), self.length, axis=1), *TOKENS)
            for old, new in zip(self[:3], (tokens_BS, segment_ids_BS, positions_BS), strict=True)
        )
        # Documents end with the new tokens, and are as long as before where there are none.
        lengths_BT = rotation_lengths(segment_ids_BS, positions_BS, config, segment_ids_BT)
        lengths_BT = jnp.maximum(self.lengths_BT, lengths_BT)
        return Text(tokens_BT, segment_ids_BT, positions_BT, lengths_BT, self.length + tokens_BS.shape[1])

    def outdates(self, before: "Text") -> jax.Array:
        """Whether a token of `before`, which this text continues, would be rotated otherwise now; a bool scalar."""
        return jnp.any((before.segment_ids_BT > 0) & (before.lengths_BT != self.lengths_BT))

    def right_aligned(self) -> tuple[jax.Array, ...]:
        """Tokens, segment ids, positions and lengths [B, T], with the free slots before them as padding."""
        return tuple(jnp.roll(x, -self.length, axis=1) for x in self[:4])


def empty_text(batch: int, slots: int) -> Text:
    def zeros() -> jax.Array:
        return shard(jnp.zeros((batch, slots), jnp.int32), *TOKENS)

    return Text(zeros(), zeros(), zeros(), zeros(), jnp.zeros((), jnp.int32))


Caches = dict[str, KeyValues | Text]
