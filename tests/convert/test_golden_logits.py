"""Logits of every family are those of `transformers`, from files that hold its answers."""

from functools import partial
from typing import NamedTuple

import golden_inputs
import hashed
import jax
import numpy as np
import pytest
from flax import nnx
from golden_folders import MODELS, difference_by_kind, one_device, write_folder
from golden_inputs import Batch, documents, packed, padded

from maxlm.config import ModelConfig
from maxlm.evaluate.load import load_all
from maxlm.model import decoder

# Of logits in float32, relative to the largest of the row; two implementations in float32 lie 1e-6 apart.
TOLERANCE = 2e-5


class Case(NamedTuple):
    name: str
    model: ModelConfig
    params: dict

    def logits_of(self, batch: Batch, kernel: str) -> np.ndarray:
        return np.asarray(_forward(self.params, *batch[:3], model=self.model, kernel=kernel))


@partial(jax.jit, static_argnames=("model", "kernel"))
def _forward(params, tokens, segments, positions, *, model: ModelConfig, kernel: str):
    graphdef, _, _ = decoder.abstract(model, attention=kernel)
    return nnx.merge(graphdef, params)(tokens, segments, positions)


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = write_folder(request.param, tmp_path_factory.mktemp("golden") / request.param)
    loaded = load_all(folder, mesh=one_device())
    return Case(request.param, loaded.model, loaded.params)


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
def test_logits_are_those_of_transformers(case: Case, kernel: str, record_property) -> None:
    """Documents alone, longer than the original context, and padded at either side."""
    found = documents(case.model.vocab_size)
    rows, left = [document.tokens for document in found], [document.kind == "left" for document in found]
    batch = padded(rows, golden_inputs.LONGEST, left)
    differences = difference_by_kind(case.name, case.logits_of(batch, kernel), range(len(rows)), batch.starts)
    record_property("differences", differences)  # --junitxml writes them, for benchmarks/2026-11-29-families.md
    assert all(found < TOLERANCE for found in differences.values()), differences


def test_packed_documents_have_the_same_logits(case: Case, record_property) -> None:
    batch, rows = packed([document.tokens for document in documents(case.model.vocab_size)], golden_inputs.LONGEST)
    differences = difference_by_kind(case.name, case.logits_of(batch, "reference"), rows, batch.starts)
    record_property("differences", differences)
    assert all(found < TOLERANCE for found in differences.values()), differences


def test_weights_are_the_same_everywhere() -> None:
    """What the golden files were made with: the generator's raw bits, not what a version of numpy makes of them."""
    assert hashed.uniform("a name", (2,)).tolist() == [-1.048549094563953, 0.6325520966320188]
    matrix = hashed.tensor(0, "model.layers.0.self_attn.q_proj.weight", (4, 3))
    assert matrix.dtype == np.float32
    assert matrix[0].tolist() == [-0.131384015083313, 0.34226033091545105, 0.29455187916755676]
    assert hashed.tensor(0, "model.norm.weight", (2,)).tolist() == [1.058164358139038, 0.7880867719650269]
    assert hashed.tokens(0, "long 40", 6, 96).tolist() == [74, 67, 74, 84, 24, 44]
