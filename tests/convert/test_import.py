"""Models come from Hugging Face folders, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from folders import add_tokenizer, config_of, make_folder, random_tensors
from safetensors.numpy import load_file, save_file

from maxlm import saved
from maxlm.checkpoint import restore
from maxlm.config import MeshConfig
from maxlm.convert.building import building
from maxlm.convert.families import TABLES, links, read_config
from maxlm.convert.folder import path_of
from maxlm.convert.importing import import_folder
from maxlm.convert.tensors import listed
from maxlm.errors import ConfigError, DataError, SaveError
from maxlm.evaluate.load import load, load_all
from maxlm.model import decoder
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings

ROOT = Path(__file__).parents[2]


def leaves(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same(one, other) -> bool:
    one, other = leaves(one), leaves(other)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


@pytest.mark.parametrize("family", TABLES)
def test_a_folder_and_its_import_are_the_same_parameters(family: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", family)
    done = import_folder(folder, tmp_path / "run")
    direct, imported = load_all(folder), load_all(tmp_path / "run")
    assert done.family == family and direct.model == imported.model
    assert same(direct.params, imported.params)
    stops = dict.fromkeys([config_of(family)["eos_token_id"], 2, 7])
    assert direct.stop_ids == imported.stop_ids == tuple(stops)
    expected = random_tensors(family, config_of(family))
    found = {path_of(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(imported.params)}
    for link in links(family, direct.model):
        for (path, index), part in zip(link.ours, link.split(expected[link.theirs]), strict=True):
            np.testing.assert_array_equal(found[path][index].astype(np.float32), part.astype(np.float32))


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2, "data": 2}, {"pipeline": 2, "fsdp": 2, "tensor": 2}]
)
def test_every_mesh_restores_an_import_to_the_same_logits(sizes: dict, tmp_path: Path) -> None:
    """The way of a training run's restore, and that of load_all."""
    folder = make_folder(tmp_path / "hf", num_hidden_layers=4)
    import_folder(folder, tmp_path / "run", "float32")
    tokens = np.random.default_rng(1).integers(0, 24, (8, 16)).astype(np.int32)
    one = load_all(tmp_path / "run", mesh=build_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
    expected = np.asarray(one.decoder(jnp.asarray(tokens)))
    mesh = build_mesh(MeshConfig(**{"fsdp": 1} | sizes))
    graphdef, shapes, axes = decoder.abstract(one.model)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        tree_shardings(axes, shapes, mesh),
    )
    restored = restore(saved.latest(tmp_path / "run"), {"params": abstract})[0]["params"]
    assert same(restored, one.params)
    if sizes.get("pipeline"):
        return
    loaded = load_all(tmp_path / "run", mesh=mesh)
    with jax.set_mesh(mesh):
        logits = jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens))(loaded.params, tokens)
    np.testing.assert_allclose(np.asarray(logits), expected, rtol=2e-5, atol=2e-5)


def test_a_folder_is_read_shard_by_shard_on_a_mesh(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "qwen3_moe", files=3)
    mesh = build_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))
    placed = load_all(folder, mesh=mesh).params
    query = placed["blocks"]["0"]["attention"]["query"]
    assert len({str(shard.index) for shard in query.addressable_shards}) > 1
    assert same(placed, load_all(folder, mesh=build_mesh(MeshConfig(fsdp=1), jax.devices()[:1])).params)
    model, tokenizer = load(folder)
    assert model(jnp.zeros((1, 4), jnp.int32)).shape == (1, 4, 24) and tokenizer.encode("ab") == [3, 4]


def test_types_stay_or_are_converted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "deepseek_v3")
    import_folder(folder, tmp_path / "kept")
    import_folder(folder, tmp_path / "wide", "float32")
    kept, wide = load_all(tmp_path / "kept").params, load_all(tmp_path / "wide").params
    exact = [name for name, leaf in leaves(kept).items() if leaf.dtype == np.float32]
    assert kept["embedding"].dtype == jnp.bfloat16 and any("bias" in name for name in exact)
    assert {leaf.dtype for leaf in leaves(wide).values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.asarray(kept["embedding"], np.float32), np.asarray(wide["embedding"]))


def test_float32_is_rounded_to_the_nearest_and_ties_to_even(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", dtype="F32")
    tensors = load_file(folder / "model.safetensors")
    edges = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F80FFFF, 0xBF818000, 0x7F7FFFFF, 1], np.uint32)
    tensors["model.embed_tokens.weight"].reshape(-1)[: len(edges)] = edges.view(np.float32)
    save_file(tensors, folder / "model.safetensors")
    import_folder(folder, tmp_path / "run", "bfloat16")
    found = np.asarray(load_all(tmp_path / "run").params["embedding"]).reshape(-1)[: len(edges)].view(np.uint16)
    assert [hex(bits) for bits in found] == ["0x3f80", "0x3f82", "0x3f81", "0x3f81", "0xbf82", "0x7f80", "0x0"]


def test_tokenizers_travel_byte_for_byte_but_no_claims(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf")
    import_folder(folder, tmp_path / "run")
    kept = tmp_path / "run" / "tokenizer"
    names = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert names == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "LICENSE",
    }
    assert all((kept / name).read_bytes() == (folder / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("settings", "bos"), [({}, 1), ({"add_bos_token": False}, None), ({"add_bos_token": None}, None)]
)
def test_bos_is_put_in_front_where_the_tokenizer_does(settings: dict, bos: int | None, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", tokenizer=False)
    add_tokenizer(folder, **settings)
    tokenizer = load_all(folder).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (bos, 2, 8)


def test_a_model_without_a_tokenizer_is_one_of_ids(tmp_path: Path, run_command) -> None:
    folder = make_folder(tmp_path / "hf", tokenizer=False)
    code, out, err = run_command("import", folder, tmp_path / "run")
    assert code == 0 and "llama" in out and "note: " in err and "no tokenizer.json" in err
    assert load(tmp_path / "run")[1] is None
    code, _, err = run_command("generate", tmp_path / "run", "--prompt", "a")
    assert code == 2 and "no tokenizer.json" in err


def test_commands_that_need_a_run_say_so(tmp_path: Path, run_command, make_config) -> None:
    run = make_config().run_dir
    import_folder(make_folder(tmp_path / "hf"), run)
    code, _, err = run_command("inspect", run, "--step", 1)
    assert code == 2 and "an imported model, which has no data and no training" in err
    code, _, err = run_command("train", tmp_path / "run.yaml")
    assert code == 2 and "an imported model" in err
    code, _, err = run_command("report", run)
    assert code == 3 and "metrics.jsonl" in err
    code, _, err = run_command("eval", run)
    assert code == 2 and "--data NAME=DIRECTORY" in err


def damage(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {name: t[name] for name in t if name != "model.norm.weight"}, "1 missing: model.norm.weight"),
        (lambda t: t.update(other=t["lm_head.weight"]), "1 not of this model: other"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()}), r"lm_head.weight \[16, 24\] \(expected"),
        (lambda t: t.update({"lm_head.weight": np.zeros((24, 16), np.int8)}), "lm_head.weight I8.*convert the model"),
        (
            lambda t: {"model.norm.weight": t["model.norm.weight"]},
            r"50 missing: model.embed_tokens.weight, .*model.layers.\{0-2\}.mlp.down_proj.weight.*, lm_head.weight;",
        ),
    ],
    ids=["missing", "extra", "misshapen", "type", "many"],
)
def test_every_tensor_that_is_wrong_is_named(change, message: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", num_hidden_layers=3)
    damage(folder, change)
    with pytest.raises(DataError, match=message):
        import_folder(folder, tmp_path / "run")
    assert not list(tmp_path.glob("run*"))
    with pytest.raises(DataError, match=message):
        load_all(folder)


def test_names_that_differ_in_numbers_alone_are_put_together() -> None:
    names = [f"layers.{layer}.experts.{expert}.w1 [2, 3]" for layer in (0, 1, 4) for expert in (2, 0, 1)]
    assert (
        listed([*names, "norm.weight", "layers.7.w2"])
        == "layers.{0-1,4}.experts.{0-2}.w1 [2, 3], norm.weight, layers.7.w2"
    )
    assert listed(["layers.0.a", "layers.1.b", "layers.1.a.c"]) == "layers.0.a, layers.1.b, layers.1.a.c"


def test_an_output_matrix_beside_tied_embeddings_must_be_the_same(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "mistral")
    damage(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    import_folder(folder, tmp_path / "run")
    damage(folder, lambda t: t["lm_head.weight"].__setitem__((0, 0), 9))
    with pytest.raises(DataError, match="lm_head.weight differs from model.embed_tokens.weight"):
        import_folder(folder, tmp_path / "other")


def truncated(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def rewritten(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def two_of_one_name(folder: Path) -> None:
    one, two = (folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    tensors, other = load_file(one), load_file(two)
    save_file(other | {next(iter(tensors)): next(iter(tensors.values()))}, two)


def moved(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = list(index["weight_map"])
    index["weight_map"] |= {names[0]: index["weight_map"][names[-1]], names[-1]: index["weight_map"][names[0]]}
    path.write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


SECOND, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncated, f"{SECOND}: has .* bytes, its header says .*; it is truncated"),
        (rewritten(SECOND, b""), f"{SECOND}: not a whole safetensors file"),
        (rewritten(SECOND, b"\xff" * 100), f"{SECOND}: not a whole safetensors file .*header"),
        (rewritten(SECOND, (9).to_bytes(8, "little") + b"[1, 2, 3]"), f"{SECOND}: not a whole safetensors file"),
        (two_of_one_name, f"both model-00001-of-00002.safetensors and {SECOND} have the tensor"),
        (lambda folder: (folder / SECOND).unlink(), f"names files that are not there: {SECOND}"),
        (moved, f"{INDEX}: these tensors are not in the files that it names"),
        (rewritten(INDEX, b"{"), f"{INDEX}: not an index"),
        (rewritten(INDEX, b'{"weight_map": {"a": "../../etc/passwd"}}'), f"{INDEX}: not an index"),
        (pickled, "pytorch_model.bin alone, which are pickled programs and are not run; .*save_pretrained"),
        (lambda folder: [path.unlink() for path in folder.glob("*.safetensors*")], "has neither model.safetensors nor"),
        (rewritten("config.json", b"[]"), "config.json: not a JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (rewritten("tokenizer.json", b"{}"), "tokenizer.json: not a tokenizer that can be read"),
    ],
)
def test_damaged_files_are_named(change, message: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", files=2)
    change(folder)
    with pytest.raises(DataError, match=message):
        import_folder(folder, tmp_path / "run")
    assert not list(tmp_path.glob("run*"))


def test_a_directory_that_exists_is_not_written_over(tmp_path: Path, monkeypatch) -> None:
    folder = make_folder(tmp_path / "hf")
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="run: exists already"):
        import_folder(folder, tmp_path / "run")
    with building(tmp_path / "new", 0), pytest.raises(ConfigError, match="another command is writing it"):
        import_folder(folder, tmp_path / "new")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=9))
    with pytest.raises(SaveError, match="do not fit"):
        import_folder(folder, tmp_path / "third")
    assert not list(tmp_path.glob("third*"))


SLOW = """
import sys, time
from maxlm import cli
from maxlm.convert import arrays
write, read = arrays.Slices.write, arrays.Slices.read
def slow(method):
    def call(*arguments):
        print("working", flush=True)
        time.sleep(0.2)
        return method(*arguments)
    return call
arrays.Slices.write, arrays.Slices.read = slow(write), slow(read)
sys.argv = ["maxlm", *sys.argv[1:]]
cli.main()
"""


def kill_within(words: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdout.readline().startswith("working")
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_killed_command_leaves_nothing_under_the_name(command: str, tmp_path: Path, run_command) -> None:
    source = make_folder(tmp_path / "hf")
    if command == "export":
        import_folder(source, tmp_path / "run")
        source = tmp_path / "run"
    kill_within([command, str(source), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists() and list((tmp_path / "out.partial").rglob("*"))
    assert run_command(command, source, tmp_path / "out")[0] == 0
    assert not (tmp_path / "out.partial").exists()
    assert load_all(tmp_path / "out").model == read_config(json.loads((tmp_path / "hf/config.json").read_text()), "")[1]
