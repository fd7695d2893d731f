"""The golden models as folders on disk, with what `transformers` made of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hashed
import jax
import numpy as np
from golden_inputs import difference, documents
from jax.sharding import Mesh
from safetensors.numpy import save_file

from maxlm.config import MeshConfig
from maxlm.parallel.mesh import build_mesh

GOLDEN = Path(__file__).parent / "golden"
MODELS = sorted(folder.name for folder in GOLDEN.iterdir())


class Golden(NamedTuple):
    config: dict
    shapes: dict[str, tuple[int, ...]]  # of the tensors in the file
    logits: dict[str, np.ndarray]  # float32 [kept positions, V] by kind of document


def golden(name: str) -> Golden:
    config = json.loads((GOLDEN / name / "config.json").read_text())
    with np.load(GOLDEN / name / "logits.npz") as found:
        shapes = {
            str(tensor): tuple(json.loads(str(shape)))
            for tensor, shape in zip(found["names"], found["shapes"], strict=True)
        }
        logits = {key: found[key] for key in found.files if key not in ("names", "shapes", "versions")}
    return Golden(config, shapes, logits)


def tensors(found: Golden) -> dict[str, np.ndarray]:
    norm_mean = hashed.norm_mean(found.config["model_type"])
    return {name: hashed.tensor(0, name, shape, norm_mean) for name, shape in found.shapes.items()}


def write_folder(name: str, folder: Path, **changes: object) -> Path:
    """The model as a Hugging Face folder, with changes to its config.json."""
    found = golden(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found.config | changes))
    save_file(tensors(found), folder / "model.safetensors", {"format": "pt"})
    return folder


def difference_by_kind(name: str, logits: np.ndarray, rows: Sequence[int], starts: Sequence[int]) -> dict[str, float]:
    """By kind of document the largest relative difference of logits [B, S, V] from what transformers says.

    `rows` and `starts` say where each document's tokens stand.
    """
    expected, kept = golden(name).logits, {}
    for document, row, start in zip(documents(logits.shape[-1]), rows, starts, strict=False):
        own = logits[row, start : start + len(document.tokens)]
        kept.setdefault(document.kind, []).append(own[document.kept])
    return {kind: difference(np.concatenate(found), expected[kind]) for kind, found in kept.items()}


def one_device() -> Mesh:
    return build_mesh(MeshConfig(), jax.devices()[:1])
