"""A trained model from a run directory or one of its checkpoints."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from maxlm import checkpoint, saved
from maxlm.config import Config, MeshConfig
from maxlm.data.shards import TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.model import decoder
from maxlm.model.layers import is_cast
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import check_divisible, tree_shardings


@dataclass(frozen=True)
class Loaded:
    """Parameters on a mesh, with what is needed to use them."""

    config: Config
    graphdef: nnx.GraphDef
    params: dict
    tokenizer: Tokenizer
    mesh: Mesh
    step: int

    @property
    def model(self) -> decoder.Decoder:
        return nnx.merge(self.graphdef, self.params)


def load(path: str | Path) -> tuple[decoder.Decoder, Tokenizer]:
    """The model and its tokenizer; `model(tokens)` gives float32 logits [B, S, V] for int32 tokens [B, S]."""
    loaded = load_all(path)
    return loaded.model, loaded.tokenizer


def load_all(path: str | Path, *, mesh: Mesh | None = None, dtype: str | None = None) -> Loaded:
    """Read a run directory's newest checkpoint, or the checkpoint directory given; parameters alone are read.

    They are placed on the mesh, by default on all devices along `embed`, whatever mesh wrote them. With `dtype`
    matrices and tables are kept in that type, in which the model computes: its numbers are the same, its memory less.
    Raises `DataError` naming the path when there is nothing to load, `ConfigError` where an axis does not divide.
    """
    directory, run, _, config = saved.find(path)
    if mesh is None:
        devices = jax.devices()
        mesh = build_mesh(MeshConfig(), devices[:1] if config.model.embed_dim % len(devices) else devices)
    device = mesh.devices.flat[0]
    computed = dtype or config.precision.compute
    if computed == "auto":
        computed = "float32" if device.platform == "cpu" else "bfloat16"
    options = {"params_dtype": jnp.dtype(config.precision.params), "dtype": jnp.dtype(computed)}
    options |= {"platform": device.platform, "device_kind": device.device_kind}
    graphdef, shapes, axes = decoder.abstract(config.model, **options)

    def placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding, names: tuple[str, ...]) -> jax.ShapeDtypeStruct:
        check_divisible(names, leaf.shape, mesh)
        narrow = dtype is not None and is_cast(names) and options["dtype"].itemsize < leaf.dtype.itemsize
        return jax.ShapeDtypeStruct(leaf.shape, options["dtype"] if narrow else leaf.dtype, sharding=sharding)

    abstract = jax.tree.map(placed, shapes, tree_shardings(axes, shapes, mesh), axes)
    items, _ = checkpoint.restore(directory, {"params": abstract})
    tokenizer = Tokenizer(directory.parents[1] / "tokenizer", TokenizerEntry.model_validate(run["tokenizer"]))
    return Loaded(config, graphdef, items["params"], tokenizer, mesh, int(run["step"]))
