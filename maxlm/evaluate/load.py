"""A model from a run directory, one of its checkpoints, an imported model's directory or a Hugging Face folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from maxlm import checkpoint, saved
from maxlm.config import Config, MeshConfig, ModelConfig
from maxlm.convert import tokenizer_files
from maxlm.convert.arrays import open_checkpoint
from maxlm.convert.folder import is_folder, path_of, read_folder
from maxlm.convert.loading import load_parameters
from maxlm.data.shards import TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.model import decoder
from maxlm.model.layers import is_cast
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import check_divisible, tree_shardings
from maxlm.saved import PARAMS


class Source(NamedTuple):
    """A model before its parameters are read."""

    path: Path
    model: ModelConfig
    config: Config | None  # of the run; None of a model that was not trained here
    dtypes: Mapping[tuple[str, ...], np.dtype]  # as they are stored, where the run's configuration does not say
    tokenizer: Tokenizer | None  # None where the model came without one that can be read
    stop_ids: tuple[int, ...]  # tokens that end a text, the end of a document first
    step: int
    read: Callable[[Any], dict]  # the arrays of an abstract tree
    weights: str = PARAMS  # or "ema": the average of them

    @property
    def compute(self) -> str:
        """The type of activations and products that the run says, or auto."""
        return self.config.precision.compute if self.config else "auto"


@dataclass(frozen=True)
class Loaded:
    """Parameters on a mesh, with what is needed to use them."""

    path: Path
    model: ModelConfig
    config: Config | None
    graphdef: nnx.GraphDef
    params: dict
    found_tokenizer: Tokenizer | None
    stop_ids: tuple[int, ...]
    mesh: Mesh
    step: int

    @property
    def decoder(self) -> decoder.Decoder:
        return nnx.merge(self.graphdef, self.params)

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises `ConfigError` where the model came without one."""
        if self.found_tokenizer is None:
            raise ConfigError(f"{self.path}: has no tokenizer.json and no tokenizer.model; add one to read texts")
        return self.found_tokenizer

    @property
    def made_for(self) -> int | None:
        """The longest sequence in tokens that the model is made for, where it says so."""
        return self.config.made_for if self.config else self.model.context_length


def load(path: str | Path, weights: str = PARAMS) -> tuple[decoder.Decoder, Tokenizer | None]:
    """The model and its tokenizer; `model(tokens)` gives float32 logits [B, S, V] for int32 tokens [B, S].

    The tokenizer is None where a Hugging Face folder has none that maxlm reads. `weights` as of `load_all`.
    """
    loaded = load_all(path, weights=weights)
    return loaded.decoder, loaded.found_tokenizer


def load_all(path: str | Path, *, mesh: Mesh | None = None, dtype: str | None = None, weights: str = PARAMS) -> Loaded:
    """Read a run directory's newest checkpoint, or the checkpoint directory or Hugging Face folder given; parameters
    alone are read, or with `weights` "ema" the average of them that the run kept.

    They are placed on the mesh, by default on all devices along `embed`, whatever mesh wrote them. With `dtype`
    matrices and tables are kept in that type, in which the model computes: its numbers are the same, its memory less.
    Raises `DataError` naming the path when there is nothing to load, `ConfigError` where an axis does not divide, and
    where there is no average.
    """
    return load_source(find_source(path, weights), mesh=mesh, dtype=dtype)


def find_source(path: str | Path, weights: str = PARAMS) -> Source:
    """What is at a path; raises as `load_all` does."""
    path = Path(path)
    if not is_folder(path):
        return _saved(path, weights)
    if weights != PARAMS:
        raise ConfigError(f"{path}: a Hugging Face folder holds no average of parameters; choose the weights params")
    return _folder(path)


def load_source(source: Source, *, mesh: Mesh | None = None, dtype: str | None = None) -> Loaded:
    """The second half of `load_all`."""
    model, device = source.model, jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    computed = dtype or source.compute
    if computed == "auto":
        computed = "float32" if device.platform == "cpu" else "bfloat16"
    params_dtype = source.config.precision.params if source.config else "bfloat16"
    options = {"params_dtype": jnp.dtype(params_dtype), "dtype": jnp.dtype(computed)}
    options |= {"platform": device.platform, "device_kind": device.device_kind}
    graphdef, shapes, axes = decoder.abstract(model, **options)
    mesh = _default_mesh(shapes, axes) if mesh is None else mesh

    def placed(keys, leaf, sharding, names) -> jax.ShapeDtypeStruct:
        check_divisible(names, leaf.shape, mesh)
        stored = jnp.promote_types(leaf.dtype, source.dtypes.get(path_of(keys), leaf.dtype))
        narrow = dtype is not None and is_cast(names) and options["dtype"].itemsize < stored.itemsize
        return jax.ShapeDtypeStruct(leaf.shape, options["dtype"] if narrow else stored, sharding=sharding)

    params = source.read(jax.tree_util.tree_map_with_path(placed, shapes, tree_shardings(axes, shapes, mesh), axes))
    rest = source.tokenizer, source.stop_ids, mesh, source.step
    return Loaded(source.path, model, source.config, graphdef, params, *rest)


def _default_mesh(shapes: dict, axes: dict) -> Mesh:
    """All devices along `embed`; one where not every parameter divides."""
    mesh = build_mesh(MeshConfig())
    try:
        jax.tree.map(lambda leaf, names: check_divisible(names, leaf.shape, mesh), shapes, axes)
    except ConfigError:
        return build_mesh(MeshConfig(), jax.devices()[:1])
    return mesh


def _saved(path: Path, weights: str) -> Source:
    directory, run, model, config = found = saved.find(path)
    found.check_weights(weights)
    entry = run["tokenizer"] and TokenizerEntry.model_validate(run["tokenizer"])
    tokenizer = Tokenizer(found.tokenizer_dir, entry) if entry else None
    # Of a run's parameters its configuration says the type; its average is in float32 whatever that is.
    dtypes = {} if config and weights == PARAMS else open_checkpoint(directory, item=weights).dtypes

    def read(abstract: Any) -> dict:
        return checkpoint.restore(directory, {weights: abstract})[0][weights]

    return Source(path, model, config, dtypes, tokenizer, found.stop_ids, int(run["step"]), read, weights)


def _folder(path: Path) -> Source:
    folder = read_folder(path)
    entry, stops = tokenizer_files.describe(path)
    tokenizer = Tokenizer(path, entry) if entry else None
    return Source(
        path, folder.model, None, folder.dtypes, tokenizer, tuple(stops), 0, lambda tree: load_parameters(folder, tree)
    )
