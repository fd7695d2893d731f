"""Models of random sizes to and from `transformers` itself, where it is installed."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from golden_folders import one_device
from golden_inputs import difference, documents, padded
from random_models import families, random_settings
from safetensors.numpy import load_file

from maxlm.convert.exporting import export
from maxlm.convert.importing import import_folder
from maxlm.evaluate.load import load_all

torch = pytest.importorskip("torch", reason="torch is not installed, with which transformers computes")
transformers = pytest.importorskip("transformers", reason="transformers is not installed, which this compares with")

import make_golden_logits  # noqa: E402

SEEDS = range(3)
TOLERANCE = 2e-5
TEXT = "Ein Zug fährt ab, 12:05 Uhr;\n\tfor i in range(3): print('αβγ 🚂', i)  "


def our_logits(path: Path, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Logits [S, V] of documents, as many rows of one batch, in float32."""
    loaded = load_all(path, mesh=one_device())
    forward = jax.jit(lambda params, *places: nnx.merge(loaded.graphdef, params)(*places))
    logits = np.asarray(forward(loaded.params, *padded(rows, max(map(len, rows)), [False] * len(rows))[:3]))
    return [row[: len(document)] for row, document in zip(logits, rows, strict=True)]


def their_logits(folder: Path, rows: list[np.ndarray]) -> list[np.ndarray]:
    # A model for each row: one whose frequencies depend on the length keeps those of longer rows.
    loaded = (make_golden_logits.load(folder, torch.float32) for _ in rows)
    return [make_golden_logits.batch_logits(model, [row])[0] for model, row in zip(loaded, rows, strict=True)]


def apart(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return float(np.max([difference(*pair) for pair in zip(found, expected, strict=True)]))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", families())
def test_logits_are_the_same_there_and_back(family: str, seed: int, tmp_path: Path, record_property) -> None:
    settings, theirs, ours, back = random_settings(family, seed), *(tmp_path / name for name in ("a", "b", "c"))
    make_golden_logits.write_folder(settings, theirs, seed)
    rows = [document.tokens for document in documents(settings["vocab_size"]) if len(document.tokens) in (9, 16, 40)]
    expected = their_logits(theirs, rows)
    import_folder(theirs, ours)
    found = apart(our_logits(ours, rows), expected)
    record_property("difference", found)
    assert found < TOLERANCE
    export(ours, back, max_shard_size="0.05MB")
    assert apart(their_logits(back, rows), expected) < TOLERANCE
    jax.tree.map(np.testing.assert_array_equal, tensors(back), tensors(theirs))


def test_tensors_in_bfloat16_are_those_that_torch_rounds(tmp_path: Path) -> None:
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    settings = random_settings("deepseek_v3", 0)
    make_golden_logits.write_folder(settings, theirs)
    import_folder(theirs, ours)
    export(ours, back, dtype="bfloat16")
    found = transformers.AutoModelForCausalLM.from_pretrained(back, dtype="auto").state_dict()
    for name, value in transformers.AutoModelForCausalLM.from_pretrained(theirs).state_dict().items():
        kept = torch.float32 if ".mlp.gate." in name else torch.bfloat16  # the router as here
        assert found[name].dtype == kept and torch.equal(found[name], value.to(kept)), name
    rows = [document.tokens for document in documents(settings["vocab_size"]) if document.kind == "ragged"]
    assert apart(our_logits(back, rows), their_logits(back, rows)) < TOLERANCE


def test_a_tokenizer_travels(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    settings = random_settings("llama", 0) | {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1}
    make_golden_logits.write_folder(settings, theirs)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(theirs)
    import_folder(theirs, ours)
    export(ours, back)
    found = transformers.AutoTokenizer.from_pretrained(back)
    assert found(TEXT)["input_ids"] == wrapped(TEXT)["input_ids"]
    assert load_all(ours, mesh=one_device()).tokenizer.encode(TEXT) == wrapped(TEXT)["input_ids"]
    assert (found.bos_token_id, found.eos_token_id) == (0, 1)


def test_a_run_loads_in_transformers_with_its_tokenizer(make_config, tmp_path: Path) -> None:
    from maxlm.train.loop import train

    config = make_config({"train.total_tokens": 512})
    train(config)
    run = Path(config.runs_dir) / config.name
    export(run, tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    loaded = load_all(run, mesh=one_device())
    ids = loaded.tokenizer.encode(TEXT)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids
    rows = [np.array(ids[:length], np.int32) for length in (3, 30)]
    assert apart(their_logits(tmp_path / "theirs", rows), our_logits(run, rows)) < TOLERANCE
