"""Which implementation of attention runs: one table of what each honours, and a pure choice from it.

`auto` takes the fastest implementation that honours the device, the masks and the shapes; an explicit name that cannot
is an error before anything is compiled. What needs memory quadratic in the sequence is never chosen for accelerators.
"""

from dataclasses import dataclass

from maxlm.config import Config
from maxlm.errors import ConfigError

TPU, GPU, CPU = ("tpu",), ("gpu", "cuda", "rocm"), ("cpu",)
EVERYWHERE = TPU + GPU + CPU


@dataclass(frozen=True)
class Capability:
    """What an implementation honours, for grouped-query attention that is causal; none of them repeats keys."""

    platforms: tuple[str, ...]
    documents: bool  # masks between the documents of a packed row (segment ids)
    window: bool  # sliding windows
    softcap: bool  # tanh soft cap of the scores
    prefix: bool  # tokens of a document's prefix that see each other in both directions
    cache: bool  # new tokens that see those of a cache (decoding)
    context: tuple[str, ...]  # what it can do about a sequence that is split: parallel.context
    values: bool = True  # values of another width than keys
    chunk: int = 1  # the sequence (under a context axis each of its 2 x shards chunks) is a multiple of so many tokens
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    dtypes: tuple[str, ...] | None = None  # of queries, keys and values; None for all


CAPABILITIES = {
    # Plain XLA with all scores at once: the truth, in memory quadratic in the sequence.
    "reference": Capability(EVERYWHERE, True, True, True, True, True, ("all_gather",)),
    # Plain XLA in tiles with a backward pass that recomputes them (ring.py, a ring of one where nothing is split).
    "blocked": Capability(EVERYWHERE, True, True, True, True, False, ("ring",)),
    # Pallas for TPU (splash.py). Its tiles are made of 128 lanes of tokens; the compiler pads the widths of heads.
    "splash": Capability(TPU, True, True, True, False, False, ("all_gather",), chunk=128),
    # Pallas for GPU (flash.py); it pads what does not fill its tiles.
    "flash": Capability(GPU, True, True, True, False, False, (), max_head_dim=256),
    # XLA's call of cuDNN, which knows no documents; padding at a row's end is hidden by causality alone.
    "cudnn": Capability(
        *(GPU, False, True, False, False, False, ()),
        values=False,
        max_head_dim=128,
        head_dim_multiple=8,
        dtypes=("bfloat16", "float16"),
    ),
}

# What auto tries, the fastest first.
FASTEST = ("splash", "cudnn", "flash", "reference", "blocked")
# Float32 scores of one sequence that auto still gives the reference on a CPU, in bytes. Short sequences are as fast
# there and compile sooner; at 8 heads of 1,024 tokens tiles, which stay in the caches, are more than twice as fast.
REFERENCE_BYTES = 2**22


@dataclass(frozen=True)
class Asked:
    """What attention has to honour: all that the choice depends on."""

    platform: str  # of the devices, as JAX names it
    seq_len: int  # of the whole sequence, in tokens
    num_heads: int
    head_dim: int
    dtype: str
    documents: bool
    window: bool
    softcap: bool
    prefix: bool = False
    cache: bool = False
    value_dim: int | None = None  # None where values are as wide as keys
    context: str = "all_gather"
    shards: int = 1  # of the sequence


def choose(name: str, asked: Asked) -> str:
    """The implementation that `name` (kernels.attention) stands for.

    Raises `ConfigError` where the one that is named cannot honour what is asked, or with auto none can.
    """
    if name != "auto":
        if reason := refusal(name, asked):
            able = [other for other in CAPABILITIES if not refusal(other, asked)]
            advice = f"use auto or one of {', '.join(able)}" if able else _advice(asked)
            raise ConfigError(f"kernels.attention: {name} {reason}; {advice}")
        return name
    for candidate in FASTEST:
        if not refusal(candidate, asked) and (candidate != "reference" or _reference_is_best(asked)):
            return candidate
    reasons = "; ".join(f"{other} {refusal(other, asked) or 'needs too much memory'}" for other in FASTEST)
    raise ConfigError(f"kernels.attention: auto finds no implementation ({reasons}); {_advice(asked)}")


def refusal(name: str, asked: Asked) -> str | None:
    """Why an implementation cannot honour what is asked: what it expects, and what was found."""
    able = CAPABILITIES[name]
    unit = 2 * asked.shards * able.chunk if asked.shards > 1 else able.chunk
    if asked.platform not in able.platforms:
        return f"runs on {able.platforms[0]}, found {asked.platform}"
    if asked.documents and not able.documents:
        return "masks no documents, found data.mask_documents: true"
    if asked.window and not able.window:
        return "has no sliding windows, found model.window"
    if asked.softcap and not able.softcap:
        return "has no soft cap, found model.attention_softcap"
    if asked.prefix and not able.prefix:
        return "has no bidirectional prefix, found data.sources with prefix_lm"
    if asked.cache and not able.cache:
        return "does not read a cache, found decoding"
    if asked.shards > 1 and asked.context not in able.context:
        expected = f"expects parallel.context: {' or '.join(able.context)}" if able.context else "splits no sequence"
        return f"{expected}, found {asked.context} over mesh.context = {asked.shards}"
    if asked.seq_len % unit:
        return f"expects a multiple of {unit} tokens, found {asked.seq_len}"
    widths = asked.head_dim, asked.value_dim or asked.head_dim
    if widths[0] != widths[1] and not able.values:
        return f"expects values as wide as keys, found {widths[1]} and {widths[0]}"
    if any(width % able.head_dim_multiple for width in widths) or max(widths) > (able.max_head_dim or max(widths)):
        return f"expects heads of a multiple of {able.head_dim_multiple} up to {able.max_head_dim}, found {max(widths)}"
    if able.dtypes and asked.dtype not in able.dtypes:
        return f"computes in {' or '.join(able.dtypes)}, found {asked.dtype}"
    return None


def _reference_is_best(asked: Asked) -> bool:
    """Where auto may take it: for queries that see a cache, and on a CPU for short sequences or where tiles cannot."""
    short = 4 * asked.num_heads * asked.seq_len**2 / asked.shards <= REFERENCE_BYTES
    return asked.cache or (asked.platform in CPU and (short or refusal("blocked", asked) is not None))


def _advice(asked: Asked) -> str:
    if asked.shards > 1 and asked.context == "all_gather":
        return "set parallel.context to ring"
    return "use auto"


def chosen(config: Config, mesh_shape: dict[str, int], platform: str, dtype: str) -> str:
    """The implementation that a run trains with; raises `ConfigError` as `choose` does."""
    model = config.model
    asked = Asked(
        platform=platform,
        seq_len=config.data.seq_len,
        num_heads=model.num_heads,
        head_dim=model.head_dim,
        value_dim=model.value_dim,
        dtype=dtype,
        documents=config.data.mask_documents,
        window=any(window is not None for window in model.window_pattern),
        softcap=model.attention_softcap is not None,
        prefix=config.data.has_prefixes,
        context=config.parallel.context,
        shards=mesh_shape.get("context", 1),
    )
    return choose(config.kernels.attention, asked)


@dataclass(frozen=True)
class Blocks:
    """Largest tiles of splash, in tokens: queries by keys, of the forward pass and of the two backward kernels."""

    forward: tuple[int, int]
    dq: tuple[int, int]
    dkv: tuple[int, int]


# A tile of q queries does 4 q E operations for the 4 E bytes of a key and its value in bfloat16, so q of them per byte
# of memory (dq: 1.5 q; dkv likewise 2 per key of the tile): more than a chip's FLOP per byte of memory, and the kernel
# waits for arithmetic. 512 are (v4 224, v5e 240, v5p 166, 7x 313) but on v6e, with 560. Larger tiles cost time to
# compile (2048 x 2048 ten times as much) and, but on v5e and v6e, do not fit the default share of VMEM.
DEFAULT_BLOCKS = Blocks((512, 512), (512, 512), (512, 512))
V6E_BLOCKS = Blocks((1024, 512), (1024, 512), (512, 512))
# By jax.Device.device_kind. What is not listed takes the default.
SPLASH_BLOCKS = {"TPU v6 lite": V6E_BLOCKS, "TPU v6e": V6E_BLOCKS}


def splash_blocks(device_kind: str) -> Blocks:
    """The tiles of splash on this kind of device."""
    return SPLASH_BLOCKS.get(device_kind, DEFAULT_BLOCKS)
