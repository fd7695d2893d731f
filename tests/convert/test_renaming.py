"""What a model is called changes nothing that it computes."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from golden_folders import one_device, write_folder
from golden_inputs import documents
from tiny import run_config

from maxlm.evaluate.load import load_all
from maxlm.parallel.mesh import build_mesh
from maxlm.train.state import abstract_inputs, blueprint
from maxlm.train.step import compile_step


@pytest.mark.parametrize("name", ["gemma2", "qwen2-windows", "deepseek_v2-lite"])
def test_a_folder_by_another_name_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    """Its directory, and what its config.json says of names; model_type alone chooses a table."""
    called = {"_name_or_path": "someone/llama-3.1-7b", "architectures": ["GemmaForEverything"]}
    plain, renamed = (
        load_all(write_folder(name, tmp_path / folder, **changes), mesh=one_device())
        for folder, changes in (("plain", {}), ("mistral-nemo", called))
    )
    assert plain.model == renamed.model and plain.graphdef == renamed.graphdef
    forward = jax.jit(lambda params, tokens: nnx.merge(plain.graphdef, params)(tokens))
    tokens = documents(plain.model.vocab_size)[-1].tokens[None]
    logits = [np.asarray(forward(loaded.params, tokens)) for loaded in (plain, renamed)]
    assert logits[0].tobytes() == logits[1].tobytes()


def test_a_run_by_another_name_is_the_same_program() -> None:
    texts = []
    for name in ("tiny", "gemma3-deepseek_v3-gpt2"):
        config = run_config()
        config = config.model_copy(update={"name": name})
        plan = blueprint(config, build_mesh(config.mesh), num_sources=1)
        with jax.set_mesh(plan.mesh):
            texts.append(compile_step(plan).lower(*abstract_inputs(plan)).as_text())
    assert texts[0] == texts[1]
