"""A trained model from a run directory or one of its checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from maxlm import checkpoint, saved
from maxlm.config import Config, MeshConfig, validate
from maxlm.data.shards import TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError
from maxlm.model import decoder
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings


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


class Saved(NamedTuple):
    """A checkpoint without its arrays."""

    directory: Path
    run: dict[str, Any]  # its JSON
    config: Config


def load(path: str | Path) -> tuple[decoder.Decoder, Tokenizer]:
    """The model and its tokenizer; `model(tokens)` gives float32 logits [B, S, V] for int32 tokens [B, S]."""
    loaded = load_all(path)
    return loaded.model, loaded.tokenizer


def load_all(path: str | Path, devices: list[jax.Device] | None = None) -> Loaded:
    """Read a run directory's newest checkpoint, or the checkpoint directory given; parameters alone are read.

    They are spread over the given devices (default: all) along `embed`, whatever mesh wrote them. Raises
    `DataError` naming the path when there is nothing to load.
    """
    directory, run, config = find(path)
    devices = jax.devices() if devices is None else devices
    if config.model.embed_dim % len(devices):
        devices = devices[:1]
    mesh = build_mesh(MeshConfig(), devices)
    platform, device_kind = devices[0].platform, devices[0].device_kind
    dtype = "float32" if platform == "cpu" else "bfloat16"
    if config.precision.compute != "auto":
        dtype = config.precision.compute
    options = {"params_dtype": jnp.dtype(config.precision.params), "dtype": jnp.dtype(dtype)}
    options |= {"platform": platform, "device_kind": device_kind}
    graphdef, shapes, axes = decoder.abstract(config.model, **options)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(axes, shapes, mesh),
    )
    items, _ = checkpoint.restore(directory, {"params": abstract})
    tokenizer = Tokenizer(directory.parents[1] / "tokenizer", TokenizerEntry.model_validate(run["tokenizer"]))
    return Loaded(config, graphdef, items["params"], tokenizer, mesh, int(run["step"]))


def find(path: str | Path) -> Saved:
    """The newest checkpoint of a run directory, or the checkpoint of its directory; `DataError` where there is none."""
    if (directory := saved.named(Path(path))) is None:
        raise DataError(f"{path}: holds no checkpoint; expected a run directory or one of its checkpoints")
    run = saved.read_run(directory)
    return Saved(directory, run, validate(run["config"], Config, f"{directory}: its configuration"))
