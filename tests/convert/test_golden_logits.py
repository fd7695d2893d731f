"""Logits of every family are those of `transformers`, from files that hold its answers."""

import functools
from pathlib import Path
from typing import NamedTuple

import hashed
import jax
import numpy as np
import pytest
from flax import nnx
from golden_folders import MODELS, difference_by_kind, one_device, write_folder
from golden_inputs import Batch, documents, packed, padded
from golden_models import LONGEST

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


@functools.partial(jax.jit, static_argnames=("model", "kernel"))
def _forward(params, tokens, segments, positions, *, model: ModelConfig, kernel: str):
    graphdef, _, _ = decoder.abstract(model, attention=kernel)
    return nnx.merge(graphdef, params)(tokens, segments, positions)


# What is easily got wrong, one setting at a time, and how far it must show.
MISTAKES = [
    ("gpt2", {"activation": "gelu_exact"}, 1e-4),
    ("llama", {"norm_eps": 1e-4}, 1e-4),
    ("llama-dynamic", {"rope.scaling.original_length": 20}, 1e-2),
    ("llama-llama3", {"rope.scaling.high_freq_factor": 4.0}, 1e-2),
    ("llama-yarn", {"rope.scaling.truncate": False}, 1e-2),
    ("llama-yarn", {"rope.scaling.attention_factor": 1.0}, 1e-2),
    ("mistral", {"window": 6}, 1e-2),
    ("mixtral", {"moe.normalize": False}, 1e-2),
    ("qwen2-windows", {"window": (5, 5, None, None)}, 1e-2),
    ("qwen3_moe-sparse", {"moe.normalize": True}, 1e-2),
    ("gemma2", {"attention_softcap": None}, 1e-2),
    ("gemma2", {"logit_softcap": None}, 1e-2),
    ("gemma2", {"window": (None, 5)}, 1e-2),
    ("gemma3_text", {"rope.local_theta": None}, 1e-2),
    ("phi3-longrope", {"rope.scaling.original_length": 40}, 1e-2),
    ("phi3-longrope", {"rope.scaling.attention_factor": 1.0}, 1e-2),
    ("deepseek_v2", {"moe.groups": 1, "moe.groups_per_token": 1}, 1e-2),
    ("deepseek_v2", {"moe.group_score": "top2"}, 1e-2),
    ("deepseek_v2-lite", {"query_scale": None}, 1e-2),
    ("deepseek_v3", {"moe.group_score": "max"}, 1e-2),
    ("deepseek_v3", {"rope.scaling.mscale": None}, 1e-2),
]


def load(name: str, folder: Path) -> Case:
    loaded = load_all(write_folder(name, folder), mesh=one_device())
    return Case(name, loaded.model, loaded.params)


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return load(request.param, tmp_path_factory.mktemp("golden") / request.param)


def in_rows(case: Case) -> Batch:
    """Every document in a row of its own, padded as its kind says."""
    found = documents(case.model.vocab_size)
    return padded([one.tokens for one in found], LONGEST, [one.kind == "left" for one in found])


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
def test_logits_are_those_of_transformers(case: Case, kernel: str, record_property) -> None:
    """Documents alone, longer than the original context, and padded at either side."""
    batch = in_rows(case)
    differences = difference_by_kind(case.name, case.logits_of(batch, kernel), range(len(batch.starts)), batch.starts)
    record_property("differences", differences)  # --junitxml writes them, for benchmarks/2026-11-29-families.md
    assert all(found < TOLERANCE for found in differences.values()), differences


def test_packed_documents_have_the_same_logits(case: Case, record_property) -> None:
    batch, rows = packed([document.tokens for document in documents(case.model.vocab_size)], LONGEST)
    differences = difference_by_kind(case.name, case.logits_of(batch, "reference"), rows, batch.starts)
    record_property("differences", differences)
    assert all(found < TOLERANCE for found in differences.values()), differences


@pytest.mark.parametrize("name, changes, shows", MISTAKES)
def test_a_mistake_in_one_setting_shows(name: str, changes: dict, shows: float, tmp_path: Path) -> None:
    case = load(name, tmp_path / name)
    values = case.model.model_dump()
    for key, value in changes.items():
        *sections, field = key.split(".")
        functools.reduce(dict.__getitem__, sections, values)[field] = value
    wrong, batch = case._replace(model=ModelConfig.model_validate(values)), in_rows(case)
    logits = wrong.logits_of(batch, "reference")
    differences = difference_by_kind(name, logits, range(len(batch.starts)), batch.starts)
    assert max(differences.values()) > shows, differences


def test_weights_are_the_same_everywhere() -> None:
    """What the golden files were made with: the generator's raw bits, not what a version of numpy makes of them."""
    assert hashed.uniform("a name", (2,)).tolist() == [-1.048549094563953, 0.6325520966320188]
    matrix = hashed.tensor(0, "model.layers.0.self_attn.q_proj.weight", (4, 3))
    assert matrix.dtype == np.float32
    assert matrix[0].tolist() == [-0.131384015083313, 0.34226033091545105, 0.29455187916755676]
    assert hashed.tensor(0, "model.norm.weight", (2,)).tolist() == [1.058164358139038, 0.7880867719650269]
    assert hashed.tokens(0, "long 40", 6, 96).tolist() == [74, 67, 74, 84, 24, 44]
