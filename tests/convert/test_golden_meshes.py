"""An import on eight devices, however they are joined, gives the logits of `transformers`."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from golden_folders import difference_by_kind, write_folder
from golden_inputs import Batch, documents, padded
from golden_models import LONGEST

from maxlm.config import MeshConfig, PipelineConfig
from maxlm.convert.importing import import_folder
from maxlm.evaluate.load import load_all
from maxlm.model import decoder
from maxlm.parallel.batch import place, sequence_order
from maxlm.parallel.mesh import build_mesh

ROWS = 16  # more than there are documents: every mesh splits them

# One model for every mechanism, so that every axis meets what it splits.
MESHES = {
    "gpt2": {"data": 2, "fsdp": 2, "tensor": 2},
    "llama-dynamic": {"fsdp": 2, "context": 2, "tensor": 2},
    "gemma2": {"data": 2, "context": 2, "tensor": 2},
    "gemma3_text": {"pipeline": 2, "fsdp": 4},
    "olmo2": {"fsdp": 8},
    "phi3-longrope": {"pipeline": 2, "data": 2, "tensor": 2},
    "mixtral": {"expert": 4, "fsdp": 2},
    "qwen3_moe-sparse": {"data": 2, "expert": 2, "tensor": 2},
    "deepseek_v2": {"pipeline": 2, "expert": 2, "fsdp": 2},
    "deepseek_v3": {"expert": 4, "tensor": 2},
}


@pytest.mark.parametrize("name", MESHES)
def test_logits_on_a_mesh_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import_folder(write_folder(name, tmp_path / "theirs"), tmp_path / "ours")
    sizes = {"fsdp": 1} | MESHES[name]
    mesh = build_mesh(MeshConfig(**sizes))
    loaded = load_all(tmp_path / "ours", mesh=mesh)
    matrices = [leaf for leaf in jax.tree.leaves(loaded.params) if leaf.ndim > 2 and leaf.size > 1000]
    assert not any(matrix.sharding.is_fully_replicated for matrix in matrices)
    found = [document.tokens for document in documents(loaded.model.vocab_size)]
    batch = padded(found + [found[0][:0]] * (ROWS - len(found)), LONGEST, [number % 2 > 0 for number in range(ROWS)])
    logits = logits_on(mesh, loaded, batch, PipelineConfig(microbatches=sizes.get("pipeline", 1)))
    differences = difference_by_kind(name, logits, range(len(found)), batch.starts)
    assert all(difference < 2e-5 for difference in differences.values()), differences


def logits_on(mesh, loaded, batch: Batch, pipeline: PipelineConfig) -> np.ndarray:
    """[B, S, V] in the order of the sequence, which a context axis splits into early and late parts."""
    graphdef, _, _ = decoder.abstract(loaded.model, pipeline=pipeline)
    forward = jax.jit(lambda params, *places: nnx.merge(graphdef, params)(*places))
    with jax.set_mesh(mesh):
        placed = place(dict(zip(Batch._fields, batch[:3], strict=False)), range(ROWS), ROWS, mesh)
        logits = np.asarray(forward(loaded.params, placed["tokens"], placed["segments"], placed["positions"]))
    return logits[:, np.argsort(sequence_order(LONGEST, mesh.shape["context"]))]
