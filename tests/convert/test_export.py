"""Models go to Hugging Face folders: the same tensors, files that transformers loads, and a card."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers
import yaml
from folders import make_folder
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny import model_config

from maxlm import saved
from maxlm.checkpoint import CHUNK_BYTES, Checkpoints
from maxlm.config import CheckpointConfig
from maxlm.convert import arrays
from maxlm.convert.arrays import Array, each, open_checkpoint, write_checkpoint
from maxlm.convert.exporting import Entry, export, shard_bytes, split_shards
from maxlm.convert.families import TABLES, links, read_config, write_config
from maxlm.convert.importing import import_folder
from maxlm.data.shards import TokenizerEntry, file_entry
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError, DataError
from maxlm.evaluate.load import load_all
from maxlm.model import decoder
from maxlm.report.metrics import append_eval
from maxlm.train.loop import train


def tensors_of(folder: Path) -> dict[str, tuple[str, tuple, bytes]]:
    """As safetensors' own library reads them."""
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, values in load_file(path).items():
            assert name not in found
            found[name] = str(values.dtype), values.shape, values.tobytes()
    return found


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("family", TABLES)
def test_what_was_imported_is_exported_to_the_bit(family: str, dtype: str, tmp_path: Path) -> None:
    folder, run, out = make_folder(tmp_path / "hf", family, dtype), tmp_path / "run", tmp_path / "out"
    import_folder(folder, run)
    done = export(run, out)
    assert done.family == family and tensors_of(out) == tensors_of(folder)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, out))
    assert read_config(before, "before") == read_config(after, "after")
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [before.get(key) for key in ids] == [after.get(key) for key in ids]
    for path in (run / "tokenizer").rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(run / "tokenizer")).read_bytes() == path.read_bytes()


def test_files_are_split_and_named_as_transformers_does(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "hf", "deepseek_v3"), tmp_path / "out"
    import_folder(folder, tmp_path / "run")
    export(tmp_path / "run", out, max_shard_size="0.005MB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in out.glob("*.safetensors"))
    count = len(names)
    assert count > 2 and names == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert index["weight_map"] == {n: f.name for f in out.glob("*.safetensors") for n in load_file(f)}
    assert index["metadata"]["total_size"] == sum(len(data) for *_, data in tensors_of(folder).values())
    assert tensors_of(out) == tensors_of(folder)
    for name in names:
        with safe_open(out / name, "numpy") as file:
            assert file.metadata() == {"format": "pt"}


def test_a_file_holds_at_most_its_size_or_one_tensor_and_wide_types_first() -> None:
    config = model_config()
    wanted = links(write_config(config)[0], config)
    entries = [Entry(link, np.dtype(np.float32 if number % 3 else np.float16)) for number, link in enumerate(wanted)]
    for most in (1, 3000, 10**9):
        shards = split_shards(entries, most)
        assert sorted(e.link.theirs for s in shards for e in s.entries) == sorted(link.theirs for link in wanted)
        for shard in shards:
            assert len(shard.entries) == 1 or sum(e.nbytes for e in shard.entries) <= most
            header, begins = shard.header()
            assert all(begins[e.link.theirs] % e.dtype.itemsize == 0 for e in shard.entries) and len(header) % 8 == 0
    assert [shard_bytes(text) for text in ("5GB", "1.5 MB", "2GiB")] == [5 * 10**9, 1500000, 2**31]
    for text in ("5", "GB", "0GB", "-1GB"):
        with pytest.raises(ConfigError, match="expected a size"):
            shard_bytes(text)


# --- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import RUN

    from maxlm.config import load

    directory = tmp_path_factory.mktemp("trained")
    (directory / "run.yaml").write_text(RUN.format(prepared=prepared, runs=directory / "runs"))
    config = load(directory / "run.yaml", ["train.total_tokens=1024", "eval.every_steps=2", "checkpoint.every_steps=4"])
    train(config)
    return config.run_dir


def test_a_run_is_exported_as_bfloat16_and_gives_the_same_logits(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(trained, out, "bfloat16")
    run, exported = load_all(trained), load_all(out)
    assert exported.model == run.model.model_copy(update={"context_length": 32})
    expected = jax.tree.map(lambda leaf: np.asarray(leaf.astype(jnp.bfloat16)), run.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == np.asarray(b).tobytes(), expected, exported.params))
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["max_position_embeddings"] == 32
    text = "def export(path):\n    return path"
    assert exported.tokenizer.encode(text) == run.tokenizer.encode(text)
    assert (exported.tokenizer.bos_id, exported.tokenizer.eos_id) == (run.tokenizer.bos_id, run.tokenizer.eos_id)


def test_the_card_says_what_was_read_and_measured_and_no_path(trained: Path, prepared: Path, tmp_path: Path) -> None:
    task = {"task": "rivers", "metrics": {"acc": 0.5, "acc_norm": 0.25}, "stderr": {"acc": 0.125}, "items": 1234}
    for step, weights in ((3, {}), (4, {"weights": "ema"}), (5, {})):  # not of these weights, or of a later step
        append_eval(trained, {"step": step, "settings": {"limit": step, "folder": "/a/b"}} | task | weights, False)
    export(trained, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers" and "license" not in head
    run, manifest = saved.find(trained).run, json.loads((prepared / "model" / "manifest.json").read_text())
    for text in (
        *run["manifests"].values(),
        f"{manifest['tokens']:,}",
        f"{manifest['documents']:,}",
        "Step 4: 1,024 tokens read",
        "held-out source | step | loss",
        "| model | 4 |",
        "| rivers (limit 3) | 3 | acc | 0.5000 | 0.1250 | 1,234 |",
        "| rivers (limit 3) | 3 | acc_norm | 0.2500 |  | 1,234 |",
        "bits per byte",
        "lr: 0.003",
        "mixture:",
        "## License",
    ):
        assert text in card
    assert card.count("| rivers") == 2
    assert str(prepared) not in card and "/" not in card.split("## Configuration")[1].split("## License")[0]
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(prepared.parent) not in path.read_text()


def test_an_export_is_evaluated_and_continued_as_the_run_is(
    trained: Path, prepared: Path, tmp_path: Path, run_command
) -> None:
    export(trained, tmp_path / "out")
    words = ["--prompt", "def ", "--max-tokens", 3, "--temperature", 0]
    answers = [run_command("generate", path, *words) for path in (trained, tmp_path / "out")]
    assert [code for code, *_ in answers] == [0, 0], answers
    assert answers[0][1] == answers[1][1] and answers[0][1].startswith("def")
    # An export has a rule for BOS in tokenizer.json, so it is not the file that the shards have; it makes the same ids.
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() != (trained / "tokenizer/tokenizer.json").read_bytes()
    data = ["--data", f"model={prepared / 'model-val'}", "--sequences", 8, "--json"]
    answers = [run_command("eval", path, *data) for path in (trained, tmp_path / "out")]
    assert [code for code, *_ in answers] == [0, 0], answers
    run, exported = (json.loads(out) for _, out, _ in answers)
    assert exported == run and run["model"]["target_tokens"] > 0
    file = tmp_path / "out" / "tokenizer.json"
    library = json.loads(file.read_text())
    library["model"]["merges"].pop()
    file.write_text(json.dumps(library))
    code, _, err = run_command("eval", tmp_path / "out", *data)
    assert code == 2 and "was prepared with another tokenizer" in err


def test_what_no_family_can_be_is_told(trained: Path, tmp_path: Path, run_command) -> None:
    code, _, err = run_command("export", trained, tmp_path / "out", "--family", "gpt2")
    assert code == 2 and "gpt2 cannot express" in err
    code, _, err = run_command("export", trained, tmp_path / "out", "--family", "llama7")
    assert code == 2 and "'llama7'" in err
    code, out, _ = run_command("export", trained, tmp_path / "out", "--family", "mistral", "--dtype", "float16")
    assert code == 0 and "mistral" in out
    assert {dtype for dtype, *_ in tensors_of(tmp_path / "out").values()} == {"float16"}
    code, _, err = run_command("export", tmp_path / "out", tmp_path / "again")
    assert code == 3 and "holds no checkpoint" in err


def test_a_damaged_checkpoint_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    import_folder(make_folder(tmp_path / "hf"), tmp_path / "run")
    for path in (tmp_path / "run").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="checkpoints/0: the checkpoint is damaged or incomplete"):
        export(tmp_path / "run", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


# --- tokenizers ----------------------------------------------------------------------------------------------


def as_run(directory: Path, tokenizer_file: Path, bos: int | None, eos: int) -> Path:
    """A checkpoint as a run has it, of a model that nobody trained, with a tokenizer."""
    from tiny import run_config

    config = run_config(model={"vocab_size": 64})
    (directory / "tokenizer").mkdir(parents=True)
    copy = directory / "tokenizer" / tokenizer_file.name
    copy.write_bytes(tokenizer_file.read_bytes())
    kind = "sentencepiece" if copy.suffix == ".model" else "tokenizers"
    files = {copy.name: file_entry(copy)}
    entry = TokenizerEntry(kind=kind, vocab_size=64, bos_id=bos, eos_id=eos, files=files)
    run = {"step": 3, "tokens": 0, "config": config.model_dump(mode="json"), "tokenizer": entry.model_dump(mode="json")}
    _, _, axes = decoder.abstract(config.model)
    params = decoder.initial_parameters(config.model, jax.random.key(0))
    with Checkpoints(directory, CheckpointConfig()) as checkpoints:
        checkpoints.save(3, params, axes, {"m": jnp.zeros(1)}, {"c": jnp.zeros(1)}, run)
    return directory


TEXTS = ["hello world", " a  b\n\tc", "don't <s> stop", "caf\u00e9 \u4f60\u597d", ""]


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sentencepiece")
    (directory / "text").write_text("hello world of small words\nwords that do not stop\n" * 50)
    options = {
        "byte_fallback": True,
        "character_coverage": 1.0,
        "add_dummy_prefix": False,
        "normalization_rule_name": "identity",
    }
    options |= {
        "remove_extra_whitespaces": False,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 0,
        "pad_id": -1,
        "model_type": "bpe",
    }
    prefix = str(directory / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "text"), model_prefix=prefix, vocab_size=300, **options
    )
    return directory / "tokenizer.model"


def test_a_bos_that_documents_begin_with_is_put_in_front(prepared: Path, tmp_path: Path) -> None:
    file = prepared / "model" / "tokenizer" / "tokenizer.json"
    run = as_run(tmp_path / "run", file, 1, 0)
    export(run, tmp_path / "out")
    before, after = (
        tokenizers.Tokenizer.from_file(str(file)),
        tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")),
    )
    for text in TEXTS:
        ids = before.encode(text, add_special_tokens=False).ids
        assert after.encode(text).ids == [1, *ids] and after.encode(text, add_special_tokens=False).ids == ids
    assert load_all(tmp_path / "out").tokenizer.bos_id == 1


@pytest.mark.parametrize("kind", ["tokenizers", "sentencepiece"])
@pytest.mark.parametrize("bos", [1, None])
def test_transformers_loads_the_tokenizer(
    kind: str, bos: int | None, prepared: Path, sentencepiece_file: Path, tmp_path: Path, monkeypatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = sentencepiece_file if kind == "sentencepiece" else prepared / "model" / "tokenizer" / "tokenizer.json"
    run = as_run(tmp_path / "run", file, bos, 2)
    export(run, tmp_path / "out")
    ours, theirs = load_all(run).tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (bos, 2)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids, text
        assert theirs.encode(text, split_special_tokens=True) == ([] if bos is None else [bos]) + ids, text
        assert theirs.decode(ids) == ours.decode(ids)


# --- memory --------------------------------------------------------------------------------------------------


def test_tensors_at_work_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(arrays, "TOGETHER", 10)
    running, most = [], []

    def work(size: int) -> None:
        running.append(size)
        most.append((sum(running), len(running)))
        running.remove(size)

    assert sum(each(work, [3, 30, 4, 4, 4, 9, 1, 1, 1, 1, 1], lambda size: size)) == 59
    assert all(total <= 10 or count == 1 for total, count in most)
    with pytest.raises(ZeroDivisionError):
        list(each(lambda size: 1 / size, [1, 0], lambda size: size))


def test_chunks_hold_one_layer_and_at_most_so_many_bytes(tmp_path: Path) -> None:
    """Imports and training checkpoints alike: an export reads layer after layer."""
    shape, bf16 = (2, 3, 2048, 4096), np.dtype(jnp.bfloat16)
    tree = {"a": Array(shape, bf16, 2), "b": Array((5,), np.dtype(np.float32), 0)}
    write_checkpoint(tmp_path / "checkpoints/0", tree, {"step": 0}, lambda slices: _fill(slices))
    chunks = open_checkpoint(tmp_path / "checkpoints/0").chunks
    assert chunks["a",][:2] == (1, 1) and np.prod(chunks["a",]) * 2 == CHUNK_BYTES and chunks["b",] == (5,)
    with Checkpoints(tmp_path / "run", CheckpointConfig()) as checkpoints:
        params = {"a": jnp.zeros((2, 3, 1024, 1024)), "b": jnp.zeros(4)}
        axes = {"a": ("layers", "experts", "embed", "mlp"), "b": ("norm",)}
        checkpoints.save(1, params, axes, {"m": jnp.zeros(1)}, {"c": jnp.zeros(1)}, {"step": 1})
    assert open_checkpoint(tmp_path / "run/checkpoints/1").chunks["a",] == (1, 1, 1024, 1024)


def _fill(slices: arrays.Slices) -> None:
    slices.write(("b",), (), np.arange(5, dtype=np.float32))
    for block in range(2):
        for expert in range(3):
            slices.write(("a",), (block, expert), np.full((2048, 4096), block + expert, jnp.bfloat16))


def test_layers_in_one_chunk_are_read_once(tmp_path: Path, monkeypatch) -> None:
    """As checkpoints of earlier versions have them."""
    run = as_run(tmp_path / "run", make_folder(tmp_path / "hf") / "tokenizer.json", None, 2)
    export(run, tmp_path / "expected")
    monkeypatch.setattr(
        "maxlm.checkpoint._stored_apart", lambda names: __import__("orbax.checkpoint").checkpoint.SaveArgs()
    )
    old = as_run(tmp_path / "old", tmp_path / "hf" / "tokenizer.json", None, 2)
    assert open_checkpoint(saved.latest(old)).chunks["blocks", "0", "mlp", "up"] == (2, 16, 32)
    caches = []
    monkeypatch.setattr(
        "maxlm.convert.exporting.open_checkpoint",
        lambda directory, cache=0, item="params": caches.append(cache) or open_checkpoint(directory, cache, item),
    )
    export(old, tmp_path / "out")
    assert caches == [0, 2 * 16 * 32 * 4] and tensors_of(tmp_path / "out") == tensors_of(tmp_path / "expected")


def test_the_tokenizer_of_an_export_is_ours_again(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "out")
    import_folder(tmp_path / "out", tmp_path / "run")
    assert isinstance(load_all(tmp_path / "run").tokenizer, Tokenizer)
    export(tmp_path / "run", tmp_path / "again")
    assert tensors_of(tmp_path / "again") == tensors_of(tmp_path / "out")
