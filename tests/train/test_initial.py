"""Runs that begin with the parameters of another model."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from test_processes import finish as finish_processes
from test_processes import start as start_processes
from test_resume import assert_same_arrays, finish, lines_without_timings, saved_arrays, start, wait_for

from maxlm.config import Config, load, validate
from maxlm.convert.exporting import export
from maxlm.convert.importing import import_folder
from maxlm.data.shards import EXTENSION, Shards, read_manifest
from maxlm.data.tokenizer import Tokenizer, read_extension
from maxlm.errors import ConfigError, DataError
from maxlm.parallel.mesh import build_mesh
from maxlm.report.metrics import read_lines
from maxlm.saved import latest, read_run
from maxlm.train import initial, loop
from maxlm.train.run import Run
from maxlm.train.state import TrainState, blueprint, initial_state, state_around, to_canonical

STEP = 256  # slots
OLD, PIECES, PADDED = 303, 40, 320  # ids of the old tokenizer, new ones, rows of the old models
BF16 = {"precision.params": "bfloat16"}


def train(config: Config) -> TrainState:
    return loop.train(config, jax.devices()[:1])


def save(config: Config, step: int = 7) -> TrainState:
    """A run of which there is one checkpoint, with random moments, without a step that takes compiling."""
    with Run(config, jax.devices()[:1]) as run:
        state, position, changes = run.restore(print)
        run.begin(position, changes)
        random = np.random.default_rng(0)
        moments = [random.random(leaf.shape).astype(leaf.dtype) + step for leaf in jax.tree.leaves(state.optimizer)]
        moments = jax.tree.unflatten(jax.tree.structure(state.optimizer), map(jnp.asarray, moments))
        state = state._replace(optimizer=moments)
        if state.ema is not None:  # unlike the parameters
            state = state._replace(ema=state.ema._replace(params=jax.tree.map(lambda p: p + 1, state.ema.params)))
        run.save(state, replace(position, step=step), jnp.float32(1))
        run.checkpoints.wait()
    return state


def begin(config: Config, devices: int = 1) -> TrainState:
    """The state of a run before its first step, in a checkpoint's layout."""
    shards = Shards(config.data.sources["model"].path)
    plan = blueprint(config, build_mesh(config.mesh, jax.devices()[:devices]), len(config.data.sources))
    found = initial.find(config, shards)
    return to_canonical(found.state(found.read(plan), plan), plan)


def begin_at_random(config: Config) -> TrainState:
    return initial_state(blueprint(config, build_mesh(config.mesh, jax.devices()[:1]), len(config.data.sources)))


def leaves(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(left, right) -> None:
    left, right = leaves(left), leaves(right)
    assert left.keys() == right.keys()
    for name in left:
        assert (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape), name
        assert left[name].tobytes() == right[name].tobytes(), name


def tables(tree: dict) -> dict[str, np.ndarray]:
    """Embedding and output [V, D], the latter only where it is not the former."""
    found = {"embedding": tree["embedding"]} | ({"output": tree["output"].T} if "output" in tree else {})
    return {name: np.asarray(table) for name, table in found.items()}


def lines(config: Config, name: str, kind: str | None = None) -> list[dict]:
    return [line for line in read_lines(config.run_dir / name) if kind in (None, line.get("kind"))]


@pytest.fixture(scope="module")
def extended(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of `prepared` with its tokenizer extended by pieces of one of them."""
    from rich.console import Console

    from data_prep.config import Pipeline
    from data_prep.pipeline import run

    out, pipeline = tmp_path_factory.mktemp("extended"), read_manifest(prepared / "model").pipeline
    extend = {"pieces": PIECES, "sources": ["prep"], "keep_ascii": False}
    pipeline |= {"output": str(out), "tokenizer": {"path": str(prepared / "model"), "extend": extend}}
    run(validate(pipeline, Pipeline, "tests"), Console(quiet=True))
    return out


@pytest.fixture
def goes_on(make_config, extended, tmp_path):
    """A run on the extended data that begins with the run `base`."""

    def make(changes: dict | None = None, base: str | Path = "base", **top) -> Config:
        paths = {f"data.sources.{name}.path": str(extended / name) for name in ("model", "prep")}
        keys = paths | {"data.validation": {"model": {"path": str(extended / "model-val")}}, "model.vocab_size": 384}
        keys |= {"init.from": str(tmp_path / "runs" / base), "init.vocabulary": "extended"}
        return make_config(keys | (changes or {}), **({"name": "goes-on"} | top))

    return make


def expected_rows(table_VD: np.ndarray, extended: Path) -> np.ndarray:
    """The means of the pieces, row by row."""
    content = json.loads((extended / "model" / "tokenizer" / EXTENSION).read_text())
    assert content["old_vocab_size"] == OLD and len(content["pieces"]) == PIECES
    rows = []
    for piece in content["pieces"]:
        total = np.zeros(table_VD.shape[1], np.float32)
        for number in piece:
            total += table_VD[number].astype(np.float32)
        rows.append(total / np.float32(len(piece)))
    return np.stack(rows)


@pytest.mark.parametrize(("tied", "base_type"), [(False, "float32"), (True, "bfloat16")])
def test_rows_of_new_pieces_are_the_means_of_those_that_they_replace(make_config, goes_on, extended, tied, base_type):
    model = {"model.tie_embeddings": tied}
    old = save(make_config(model | {"precision.params": base_type}, name="base")).params
    config = goes_on(model | {"seed": 5})
    new, fresh = begin(config).params, begin_at_random(config).params
    assert len(tables(new)) == 1 + (not tied)
    for name, table in tables(new).items():
        before, at_random = tables(old)[name].astype(np.float32), tables(fresh)[name]
        assert table.shape == (384, 32) and table.dtype == np.float32
        assert table[:OLD].tobytes() == before[:OLD].tobytes()
        assert table[OLD : OLD + PIECES].tobytes() == expected_rows(before, extended).tobytes()
        assert table[OLD + PIECES :].tobytes() == at_random[OLD + PIECES :].tobytes()
    for name, leaf in leaves(new["blocks"]).items():
        assert leaf.tobytes() == leaves(old["blocks"])[name].astype(np.float32).tobytes(), name
    if base_type == "bfloat16":  # and in that type they are the means of float32, rounded once
        rounded = begin(goes_on(model | BF16)).params["embedding"][OLD : OLD + PIECES]
        np.testing.assert_array_equal(rounded, np.asarray(new["embedding"])[OLD : OLD + PIECES].astype(jnp.bfloat16))


def test_other_ways_for_new_rows_and_rows_that_were_padding(make_config, goes_on, extended):
    old = save(make_config({"model.vocab_size": 384}, name="base")).params
    at_random = tables(begin_at_random(goes_on({"seed": 5})).params)
    for rows in ("scaled_pieces", "mean", "random"):
        new = begin(goes_on({"init.rows": rows, "seed": 5})).params
        for name, table in tables(new).items():
            before, rows_PD = tables(old)[name], table[OLD : OLD + PIECES]
            random_PD = at_random[name][OLD : OLD + PIECES]
            if rows == "scaled_pieces":
                means_PD = expected_rows(before, extended)
                sizes_P1 = np.abs(random_PD).sum(1, keepdims=True) / np.abs(means_PD).sum(1, keepdims=True)
                np.testing.assert_allclose(rows_PD, means_PD * sizes_P1, rtol=1e-5)
            elif rows == "mean":
                np.testing.assert_allclose(rows_PD, np.tile(before[:OLD].mean(0), (PIECES, 1)), rtol=1e-4, atol=1e-7)
            else:
                assert rows_PD.tobytes() == random_PD.tobytes()
            assert table[:OLD].tobytes() == before[:OLD].tobytes()
            assert table[OLD + PIECES :].tobytes() == before[OLD + PIECES :].tobytes()


MESHES = [
    {"mesh": {"fsdp": 8}},
    {"mesh": {"fsdp": 2, "tensor": 2, "data": 2}, "parallel.zero": 1},
    {"mesh": {"pipeline": 2, "fsdp": 2, "tensor": 2}, "pipeline": {"microbatches": 2, "repeats": 2}},
]


def test_every_mesh_begins_with_the_same_bits(make_config, goes_on):
    """The old vocabulary divides over none of these meshes."""
    sizes = {"model.vocab_size": 305, "model.num_layers": 4}
    save(make_config(sizes, name="base"))
    for rows, meshes in (("pieces", MESHES), ("scaled_pieces", MESHES), ("mean", MESHES[1:2])):
        changes = {"model.num_layers": 4, "init.rows": rows, "init.optimizer": "kept"}
        alone = begin(goes_on(changes))
        for mesh in meshes:
            state = begin(goes_on(changes | mesh), devices=8)
            assert len(state.params["embedding"].sharding.device_set) == 8
            assert_same(state, alone)


OPTIMIZERS = {"adamw": {}, "muon": {"optimizer.name": "muon"}, "host": {"optimizer.offload": "host"}}


def test_kept_moments_and_counts_are_those_of_the_checkpoint_and_of_new_rows_zero(make_config, goes_on):
    for name, optimizer in OPTIMIZERS.items():
        base = make_config(optimizer, name=f"base-{name}")
        old = save(base)
        kept = {"init.from": str(base.run_dir), "init.optimizer": "kept"} | optimizer
        state = begin(make_config(kept, name="same"))
        assert_same((state.params, state.optimizer), (old.params, old.optimizer))
        before, after = leaves(old.optimizer), leaves(begin(goes_on(kept)).optimizer)
        grown = [path for path in before if before[path].shape != after[path].shape]
        assert len(grown) == 4, "two moments of embedding and output"
        for path in before:
            if path not in grown:
                assert after[path].tobytes() == before[path].tobytes(), path
                continue
            axis = before[path].shape.index(PADDED)
            moment, old_moment = np.moveaxis(after[path], axis, 0), np.moveaxis(before[path], axis, 0)
            assert moment[:OLD].tobytes() == old_moment[:OLD].tobytes() and old_moment.min() >= 7
            assert not moment[OLD : OLD + PIECES].any() and not moment[PADDED:].any()


def test_an_average_of_parameters_is_a_beginning_without_moments(make_config, goes_on):
    base = save(make_config({"optimizer.ema": 0.9}, name="base"))
    config = goes_on({"init.weights": "ema"})
    old = {name: table[:OLD] for name, table in tables(begin(config).params).items()}
    expected = {name: table[:OLD] for name, table in tables(base.ema.params).items()}
    assert_same(old, expected)
    assert not np.array_equal(old["embedding"], np.asarray(base.params["embedding"])[:OLD])
    with pytest.raises(ConfigError, match="optimizer must be fresh with weights ema"):
        goes_on({"init.weights": "ema", "init.optimizer": "kept"})
    save(make_config(name="without"))
    assert "holds no average of the parameters" in refusal(goes_on({"init.weights": "ema"}, base="without"))


AROUND = OPTIMIZERS | {
    "ema": {"optimizer.ema": 0.9},
    "pipeline": {"mesh.pipeline": 2, "pipeline": {"microbatches": 2, "repeats": 2}},
}


@pytest.mark.parametrize("changes", AROUND.values(), ids=AROUND)
def test_what_is_around_given_parameters_is_what_would_be_around_random_ones(make_config, changes):
    config = make_config(changes | {"model.num_layers": 4})
    plan = blueprint(config, build_mesh(config.mesh, jax.devices()[: config.mesh.pipeline]), 2)
    state = initial_state(plan)
    assert_same(state_around(state.params, plan), state)


def test_a_proxy_run_may_begin_with_a_model_too(make_config, tmp_path):
    save(make_config(name="reference"))
    dynamic = {"name": "doremi", "reference": str(tmp_path / "runs" / "reference")}
    config = make_config({"data.dynamic": dynamic, "init.from": dynamic["reference"], "seed": 5}, name="proxy")
    state, fresh = begin(config), begin_at_random(config)
    assert_same(state.domains, fresh.domains)
    assert leaves(state.domains) and not np.array_equal(state.params["embedding"], fresh.params["embedding"])


def test_a_hugging_face_folder_is_a_beginning_too(make_config, goes_on, tmp_path):
    """Its tokenizer puts BOS in front of a text, which the data's does not: the ids are the same."""
    base = make_config(name="base")
    old = save(base).params
    export(base.run_dir, tmp_path / "folder", dtype="bfloat16")
    import_folder(tmp_path / "folder", tmp_path / "runs" / "imported")
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16).astype(np.float32), old)
    hashes = set()
    model = {"init.from": str(tmp_path / "folder"), "model.context_length": 32}  # which an export says
    for path in (tmp_path / "folder", tmp_path / "runs" / "imported"):
        config = make_config(model | {"init.from": str(path)}, name="same")
        assert_same(begin(config).params, rounded)
        hashes.add(initial.find(config, Shards(config.data.sources["model"].path)).identity["sha256"])
        with pytest.raises(ConfigError, match=r"init\.optimizer is kept, and .* has no moments; expected a checkpoint"):
            begin(make_config(model | {"init.from": str(path), "init.optimizer": "kept"}, name="same"))
    assert len(hashes) == 2
    table = tables(begin(goes_on(model)).params)["embedding"]
    assert table[:OLD].tobytes() == rounded["embedding"][:OLD].tobytes() and len(table) == 384


def refusal(config: Config, kind: type[Exception] = ConfigError) -> str:
    with pytest.raises(kind) as refused:
        initial.find(config, Shards(config.data.sources["model"].path))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_does_not_fit_is_one_line_and_what_to_do(make_config, goes_on, prepared, extended, tmp_path):
    base = make_config(name="base")
    save(base)
    here = {"init.from": str(base.run_dir)}
    assert "no such directory" in refusal(make_config({"init.from": str(tmp_path / "none")}, name="new"), DataError)
    message = refusal(make_config(here | {"model.mlp_dim": 96, "model.rope.theta": 5e5, "model.vocab_size": 384}))
    assert "is another model: model.mlp_dim: 64 there, 96 here; model.vocab_size: 320 there, 384 here" in message
    assert "take its section from `maxlm config model " in message
    assert "with vocab_size of at least 320" in refusal(goes_on({"model.vocab_size": 310}))
    moe = {"num_experts": 2, "experts_per_token": 1, "mlp_dim": 8, "normalize": False}
    assert "model.moe: None there, " in refusal(make_config(here | {"model.moe": moe}))
    assert "was trained with adamw, this run with muon" in refusal(
        make_config(here | {"init.optimizer": "kept", "optimizer.name": "muon"})
    )
    assert "has another tokenizer than " in refusal(goes_on({"init.vocabulary": "same", "model.vocab_size": 384}))
    assert "was not extended (it has no extension.json)" in refusal(make_config(here | {"init.vocabulary": "extended"}))
    # An extended model's tokenizer is not the one that was extended; nor is one of the same size with other merges.
    save(goes_on({"init": None}, name="other"))
    assert "extends another one" in refusal(goes_on(base="other"))
    entry, directory = read_manifest(extended / "model").tokenizer, tmp_path / "changed"
    text = (prepared / "model" / "tokenizer" / "tokenizer.json").read_text()
    definition = json.loads(text)
    definition["model"]["merges"][:2] = reversed(definition["model"]["merges"][:2])
    directory.mkdir()
    old_entry = read_manifest(prepared / "model").tokenizer.model_copy(update={"files": {}})
    for merges, same in ((text, True), (json.dumps(definition), False)):
        (directory / "tokenizer.json").write_text(merges)
        new = Tokenizer(extended / "model" / "tokenizer", entry)
        found = read_extension(extended / "model" / "tokenizer")
        assert new.extends(Tokenizer(directory, old_entry), found) == same


def test_biases_of_routers_are_parameters_and_losses_are_not(make_config, tmp_path):
    moe = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 16}
    save(make_config({"model.moe": moe}, name="base"))
    fits = {"model.moe": moe | {"balance": None, "aux_weight": 0.5, "z_weight": 0.1}, "model.context_length": 64}
    fits |= {"init.from": str(tmp_path / "runs" / "base"), "model.rope": {"theta": 1e6}}
    assert begin(make_config(fits, name="new")).params
    message = refusal(make_config(fits | {"model.moe": moe | {"balance": "bias"}}, name="new"))
    assert "model.moe.balance: None there, 'bias' here" in message


def test_the_model_section_of_anything_is_printed_for_extends(make_config, run_command, tmp_path):
    base = make_config({"model.rope.theta": 12345.0}, name="base")
    save(base)
    code, out, _ = run_command("config", "model", base.run_dir)
    assert code == 0 and yaml.safe_load(out) == {"model": base.model.model_dump(mode="json")}
    (tmp_path / "base.yaml").write_text(out)
    rest = {key: value for key, value in base.model_dump(mode="json").items() if key != "model"}
    run = {"extends": ["base.yaml"], **rest, "name": "new", "init": {"from": str(base.run_dir)}}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(run))
    config = load(tmp_path / "new.yaml")
    assert config.model == base.model and begin(config)
    # A plan needs no model to begin with.
    code, out, err = run_command("plan", tmp_path / "new.yaml", "init.from=nowhere", "--hardware", "h100x8", "--json")
    assert code == 0 and json.loads(out), err


def test_a_run_goes_on_from_its_own_checkpoint_to_the_bit_when_what_it_began_with_is_gone(make_config, goes_on):
    base = make_config(name="base")
    save(base)
    constant = {"schedule": {"name": "constant", "warmup_tokens": STEP * 4, "initial_ratio": 0.5}}
    whole = goes_on(constant | {"train.total_tokens": STEP * 8}, name="whole")
    state = train(whole)
    train(goes_on(constant | {"train.total_tokens": STEP * 4}, name="parts"))
    base.run_dir.rename(base.run_dir.with_name("elsewhere"))
    again = goes_on(constant | {"train.total_tokens": STEP * 8}, base="nowhere", name="parts")
    assert_same(train(again), state)
    first, second = (
        [[(line["step"], line["loss"]) for line in lines(config, name)] for name in ("metrics.jsonl", "eval.jsonl")]
        for config in (whole, again)
    )
    # Each of the shorter runs logs and evaluates its last step too.
    assert set(map(tuple, first[0])) <= set(map(tuple, second[0])) and first[1][0] == second[1][0]
    assert [step for step, _ in first[1]] == [0, 8] and [step for step, _ in second[1]] == [0, 4, 8]
    assert first[1][1] == second[1][2]
    (event,) = lines(again, "events.jsonl", "initialised")
    assert (event["from_step"], event["rows_kept"], event["rows_new"], event["rows"]) == (7, OLD, PIECES, "pieces")
    assert event["vocabulary"] == "extended" and event["moments"] == "fresh"
    for config in (whole, again):
        found = read_run(latest(config.run_dir))["init"]
        assert found == {"path": event["from"], "step": 7, "sha256": event["sha256"]}
    assert lines(whole, "metrics.jsonl")[0]["learning_rate"] == pytest.approx(3e-3 * (0.5 + 0.5 * 3 / 4))
    with pytest.raises(ConfigError, match=r"init\.rows: 'pieces' -> 'mean'"):
        train(goes_on(constant | {"init.rows": "mean"}, name="parts"))
    with pytest.raises(ConfigError, match=r"cannot change in it: init: .*-> None"):
        train(goes_on(constant | {"init": None}, name="parts"))


@pytest.mark.slow
def test_means_of_pieces_begin_lower_than_random_rows_and_kills_change_nothing(make_config, goes_on, tmp_path):
    long = {"data.mixture": [{"tokens": STEP * 4 * 400, "weights": {"model": 1, "prep": 1}}], "optimizer.lr": 1e-2}
    quiet = {"train.batch_tokens": STEP * 4, "eval.every_steps": None, "checkpoint.every_steps": None}
    train(make_config(long | quiet | {"logging.every_steps": 50}, name="base"))
    length = {"train.total_tokens": STEP * 20, "checkpoint.every_steps": 10, "logging.every_steps": 1}
    length |= {"eval.sequences": 64}
    whole, killed = goes_on(length, name="whole"), goes_on(length, name="killed")
    finish(start(whole, tmp_path))
    finish(start(goes_on(length | {"train.total_tokens": STEP, "init.rows": "random"}, name="random"), tmp_path))
    pieces, random = (
        lines(config, "eval.jsonl")[0]["loss"] for config in (whole, whole.model_copy(update={"name": "random"}))
    )
    assert pieces < random

    moments = [lambda: len(lines(killed, "metrics.jsonl")) >= 3, lambda: latest(killed.run_dir)]
    for condition in moments:  # before its first checkpoint, and as soon as that is there
        process = start(killed, tmp_path)
        wait_for(process, condition)
        process.kill()
        process.communicate()
    finish(start(killed, tmp_path))
    assert_same_arrays(saved_arrays(whole, 20), saved_arrays(killed, 20))
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert lines_without_timings(whole, name) == lines_without_timings(killed, name)
    assert len(lines(killed, "events.jsonl", "initialised")) == 2


@pytest.mark.slow
def test_two_processes_begin_as_one_does(make_config, goes_on, tmp_path):
    save(make_config(name="base"))
    changes = {"init.optimizer": "kept", "train.total_tokens": STEP * 4, "logging.every_steps": 1}
    one, two = goes_on(changes, name="one"), goes_on(changes, name="two")
    train(one)
    codes, printed = finish_processes(start_processes(two, tmp_path, 2), two, tmp_path)
    assert codes == [0, 0], printed
    for name in ("metrics.jsonl", "eval.jsonl"):
        losses = [[(line["step"], line["loss"]) for line in lines(config, name)] for config in (one, two)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    assert [line["step"] for line in lines(two, "eval.jsonl")] == [0, 4]
