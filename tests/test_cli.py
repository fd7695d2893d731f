"""The commands as a user types them: what they print, and the exit code of every kind of bad input."""

import io
import json
import shutil
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from flax import nnx
from tiny import RUN

from maxlm.config import load, to_yaml
from maxlm.evaluate.chat import Chat
from maxlm.evaluate.load import load_all
from maxlm.train import loop


@pytest.fixture
def config_file(make_config, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(make_config()))
    return path


def one_line_error(result: tuple[int, str, str], code: int) -> str:
    found, out, err = result
    assert found == code, err
    assert out == "" and "Traceback" not in err
    (line,) = err.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "unknown key 'optimizer.learning_rat'"),
        ("trian.batch_tokens=256", "unknown key 'trian'; the nearest is 'train'"),
        ("optimizer.lr=-1", "optimizer.lr: found -1; input should be greater than 0"),
        ("remat.policy=ful", "remat.policy: found 'ful'"),
        ("train.batch_tokens=100", "train.batch_tokens must be a multiple of data.seq_len"),
        ("train.batch_tokens=96", "the nearest that works is 256"),
        ("mesh={fsdp: 3, data: 1}", "mesh: fsdp 3 does not make 8"),
        ("mesh={tensor: 8, fsdp: 1}", "model.num_heads: 4 is not divisible by mesh.tensor = 8"),
        ("model.vocab_size=256", "model.vocab_size is 256, the tokenizer of"),
    ],
)
def test_bad_configuration_is_one_line_and_exit_code_2(run_command, config_file, tmp_path, override, message):
    assert message in one_line_error(run_command("train", config_file, override), 2)
    assert not (tmp_path / "runs").exists()


def test_a_missing_configuration_is_exit_code_2(run_command, tmp_path):
    assert "no such configuration file" in one_line_error(run_command("train", tmp_path / "none.yaml"), 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d), "no such directory"),
        (lambda d: (d / "manifest.json").unlink(), "the directory has no manifest.json"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json: not a manifest"),
        (lambda d: (d / "tokens-00000.bin").unlink(), "tokens-00000.bin: missing"),
        (lambda d: cut(d / "tokens-00000.bin"), "tokens-00000.bin: has"),
        (lambda d: flip(d / "tokens-00000.idx"), "tokens-00000.idx: its contents differ"),
    ],
    ids=["directory", "manifest", "damaged-manifest", "shard", "truncated", "altered"],
)
def test_bad_data_is_one_line_that_names_the_file_and_exit_code_3(
    run_command, config_file, prepared, tmp_path, damage, message
):
    copy = tmp_path / "copy"
    shutil.copytree(prepared / "prep", copy)
    damage(copy)
    line = one_line_error(run_command("train", config_file, f"data.sources.prep.path={copy}"), 3)
    assert line.startswith(str(copy)) and message in line
    assert not (tmp_path / "runs").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def test_nothing_to_load_is_exit_code_3(run_command, tmp_path):
    assert "no such directory" in one_line_error(run_command("generate", tmp_path / "none"), 3)
    assert "holds no checkpoint" in one_line_error(run_command("eval", tmp_path), 3)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    (path / "tiny.yaml").write_text(RUN.format(prepared=prepared, runs=path / "runs"))
    config = load(path / "tiny.yaml", ["train.total_tokens=2048", "logging.tensorboard=true"])
    loop.train(config, jax.devices()[:1])
    return config.run_dir


def test_a_run_directory_holds_what_is_promised(trained):
    names = {path.name for path in trained.iterdir()}
    wanted = {"config.yaml", "metrics.jsonl", "eval.jsonl", "events.jsonl", "checkpoints", "tensorboard", "report.html"}
    assert wanted | {"tokenizer", "lock"} == names
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    fields = """step tokens loss grad_norm param_norm update_norm learning_rate step_seconds data_wait_seconds
        tokens_per_second mfu hbm_gib skipped bubble loss_by_source tokens_by_source target_tokens"""
    assert set(fields.split()) == set(line)
    assert line["step"] == 8 and line["tokens"] == 2048 and line["mfu"] is None and line["bubble"] == 0
    assert 0 < line["target_tokens"] <= 2048 and set(line["loss_by_source"]) == {"model", "prep"}
    assert load(trained / "config.yaml").compiler.options == {}  # those that auto stands for on a CPU


def test_eval_prints_a_table_or_json_of_the_whole_source(run_command, trained, prepared):
    code, out, err = run_command("eval", trained, "--json")
    assert code == 0, err
    ((name, result),) = json.loads(out).items()
    manifest = json.loads((prepared / "model-val" / "manifest.json").read_text())
    assert name == "model" and result["bytes"] == manifest["bytes"]
    assert result["target_tokens"] == manifest["tokens"] - manifest["documents"]
    code, out, _ = run_command("eval", trained, "--data", f"other={prepared / 'prep'}", "--sequences", "4")
    assert code == 0 and "bits per byte" in out and "other" in out


def test_eval_reads_sources_in_object_stores(run_command, trained, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where the cache is
    fsspec.filesystem("memory").put(str(prepared / "prep-val"), "/held-out", recursive=True)
    held_out = (prepared / "prep-val", (prepared / "prep-val").as_uri(), "memory://held-out")
    printed = [run_command("eval", trained, "--json", "--data", f"other={place}") for place in held_out]
    assert printed[0][0] == 0 and printed[0][:2] == printed[1][:2] == printed[2][:2]
    assert list((tmp_path / ".cache" / "maxlm" / "shards").rglob("tokens-00000.idx*"))


def test_generate_continues_the_prompt_and_repeats_itself_with_a_seed(run_command, trained):
    words = ("generate", trained, "--prompt", "def ", "--max-tokens", "12")
    first, again = run_command(*words, "--seed", "3"), run_command(*words, "--seed", "3")
    assert first[0] == 0 and first[1] == again[1] and first[1].startswith("def ")
    assert run_command(*words, "--seed", "4")[1] != first[1]
    checkpoint = trained / "checkpoints" / "8"
    assert run_command("generate", checkpoint, *words[2:], "--seed", "3")[1] == first[1]


def test_a_space_at_the_end_of_the_prompt_is_kept_and_begins_the_next_token(run_command, trained):
    greedy = ("--max-tokens", "1", "--temperature", "0")
    out = run_command("generate", trained, "--prompt", "def ", *greedy)[1]
    assert out.startswith("def ") and out.endswith("\n")
    tokenizer = load_all(trained).tokenizer
    with_space = [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
    assert out[3:-1] in {text for text in with_space if text.startswith(" ")}


def test_generate_continues_many_prompts_in_their_order(run_command, trained, tmp_path):
    words = ("generate", trained, "--max-tokens", "6", "--temperature", "0")
    code, alone, err = run_command(*words, "--prompt", "import ")
    assert code == 0 and "6 tokens, the first after" in err and "note" not in err
    (tmp_path / "prompts.txt").write_text("def f\n\nclass\n")
    code, out, _ = run_command(*words, "--prompt", "import ", "--prompts", tmp_path / "prompts.txt", "--batch", "2")
    first, second, third = out.removesuffix("\n").split("\n---\n")
    assert code == 0 and first + "\n" == alone and second.startswith("def f") and third.startswith("class")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "import "}\n{"prompt": "def f", "answer": 1}\n')
    code, out, _ = run_command(*words, "--prompts", tmp_path / "prompts.jsonl", "--json", "--logprobs")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in lines] == ["import ", "def f"] and first == "import" + lines[0]["text"]
    assert lines[1]["text"] == second.removeprefix("def f") and {line["tokens"] for line in lines} == {6}
    assert all(len(line["logprobs"]) == 6 and max(line["logprobs"]) <= 0 for line in lines)
    assert {line["finish"] for line in lines} == {"length"}
    stop = lines[1]["text"][2:4]
    (line,) = run_command(*words, "--prompt", "def f", "--json", "--stop", stop)[1].splitlines()
    assert json.loads(line)["text"] == lines[1]["text"].partition(stop)[0] and json.loads(line)["finish"] == "stop"


def test_generate_runs_on_a_mesh_and_tells_of_long_texts(run_command, trained):
    words = ("generate", trained, "--prompt", "import ", "--max-tokens", "40", "--temperature", "0")
    code, alone, err = run_command(*words)
    assert code == 0 and "note: a text is longer than the 32 tokens that the model is made for" in err
    code, out, _ = run_command(*words, "--mesh", "data=2,tensor=4", "--dtype", "float32")
    assert (code, out) == (0, alone)


def test_matrices_kept_in_the_compute_type_give_the_same_numbers(trained):
    wide, narrow = load_all(trained), load_all(trained, dtype="bfloat16")
    types = [{leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} for loaded in (wide, narrow)]
    assert types == [{"float32"}, {"float32", "bfloat16"}]  # norms keep theirs
    tokens = np.arange(40, dtype=np.int32)[None]
    wanted, found = (nnx.merge(narrow.graphdef, loaded.params)(tokens) for loaded in (wide, narrow))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--mesh", "tensors=2"], 2, "--mesh tensors=2: found 'tensors=2', expected AXIS=SIZE"),
        (["--mesh", "tensor=8"], 2, "is not divisible by mesh.tensor = 8"),
        (["--dtype", "int8"], 2, "--dtype: found int8, expected bfloat16 or float32"),
        (["--top-p", "2"], 2, "top_p: found 2.0"),
        (["--stop", ""], 2, "a stop string is empty"),
        (["--prompts", "{tmp}/none.txt"], 3, "none.txt: cannot be read as text"),
        (["--prompts", "{tmp}/empty.txt"], 3, "empty.txt: holds no prompt; expected one per line"),
        (["--prompts", "{tmp}/bad.jsonl"], 3, "bad.jsonl, line 2: expected an object with a text 'prompt', found [1]"),
        (["--chat", "--prompt", "a"], 3, "holds no chat template"),
    ],
)
def test_what_generate_cannot_do_is_one_line(run_command, trained, tmp_path, words, code, message):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n[1]\n')
    result = run_command("generate", trained, *(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert message in one_line_error(result, code)


CHAT = """{% for message in messages %}{{ message.role + ': ' + message.content + '<fim_suffix>' }}{% endfor %}"""


@pytest.fixture
def with_template(trained):
    """The trained run, with a chat template while the test lasts."""
    path = trained / "tokenizer" / "chat_template.jinja"
    path.write_text(CHAT)
    yield trained
    path.unlink()


def test_chat_answers_what_a_pipe_gives(run_command, with_template, monkeypatch):
    words = ("generate", with_template, "--chat", "--max-tokens", "6", "--temperature", "0")

    def answer(text: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return run_command(*words, *more)

    code, out, _ = answer("Hello\n")
    assert code == 0 and len(out) > 1
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with_system = answer(json.dumps(messages))
    assert with_system[0] == 0 and with_system[:2] == answer("Hello", "--system", "Be brief.")[:2]
    (line,) = run_command(*words, "--prompt", "Hello", "--json")[1].splitlines()
    assert json.loads(line)["prompt"] == "Hello" and json.loads(line)["text"] + "\n" == out
    assert "stdin holds no message" in one_line_error(answer(" "), 3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_chat_goes_on_until_it_is_told_to_end(run_command, with_template, monkeypatch):
    lines, asked = iter(["one", "", "two", "/new", "one", "/exit", "never"]), []
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda marker: next(lines))
    encode = Chat.encode
    monkeypatch.setattr(Chat, "encode", lambda chat, messages: asked.append(messages) or encode(chat, messages))
    words = ("generate", with_template, "--chat", "--max-tokens", "4", "--temperature", "0", "--system", "S")
    code, out, err = run_command(*words)
    assert code == 0 and next(lines) == "never" and out.count("[...]\n") == 3
    roles = [[message["role"] for message in messages] for messages in asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert [messages[-1]["content"] for messages in asked] == ["one", "two", "one"]
    assert asked[1][2]["content"] == out.partition(" [...]")[0]
    assert err.count("longer than the 32 tokens") == 1 and "/exit or Ctrl-D ends" in err


def test_report_and_configuration_commands_print_what_they_wrote(run_command, trained, tmp_path):
    code, out, _ = run_command("report", trained, "--out", tmp_path / "page.html")
    assert code == 0 and out.strip() == str(tmp_path / "page.html") and (tmp_path / "page.html").stat().st_size > 10_000
    assert json.loads(run_command("config", "schema")[1])["title"] == "Config"
    code, out, _ = run_command("config", "show", trained / "config.yaml", "optimizer.lr=0.5")
    assert code == 0 and "lr: 0.5" in out


def test_inspect_reads_the_checkpoint_that_training_wrote(run_command, trained):
    code, out, err = run_command("inspect", trained, "--step", "3", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["checkpoint"], found["steps"], found["slots"], found["state"]) == (8, 8, [512, 768], "read")
    assert sum(one["slots"][1] - one["slots"][0] for one in found["documents"]) == 256
    for one in found["documents"]:
        code, out, _ = run_command("inspect", trained, "--document", one["document"]["id"], "--json")
        assert (3, one["row"]) in [(read["step"], read["row"]) for read in json.loads(out)["documents"][0]["readings"]]
    code, out, _ = run_command("inspect", trained, "--mixture")
    assert code == 0 and "mixture: 8 steps, 2,048 tokens; 8 steps are done" in out


def test_python_api_loads_a_model_that_gives_logits(trained):
    import numpy as np

    import maxlm

    model, tokenizer = maxlm.load(trained)
    tokens = np.array([tokenizer.encode("import jax")], np.int32)
    logits = model(tokens)
    assert logits.shape == (*tokens.shape, 320) and logits.dtype == "float32"


def test_values_are_read_from_the_device_at_log_steps_alone(make_config, monkeypatch):
    reads = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append(1) or get(tree))
    array = type(jax.numpy.zeros(()))
    for name in ("__float__", "__int__", "__array__", "item", "tolist"):
        method = getattr(array, name)
        monkeypatch.setattr(array, name, lambda self, *a, _m=method, **k: reads.append(_m) or _m(self, *a, **k))
    quiet = {"eval.every_steps": None, "checkpoint.every_steps": None, "train.total_tokens": 256 * 12}
    counts = {}
    for every in (2, 3, 6):
        reads.clear()
        config = make_config({**quiet, "data.validation": {}, "logging.every_steps": every}, name=f"every{every}")
        loop.train(config, jax.devices()[:1])
        counts[every] = len(reads)
    # 6, 4 and 2 lines: the reads of a line times their number, and a constant for the start and the last save.
    of_a_line = (counts[3] - counts[6]) / 2
    assert of_a_line >= 1 and counts[2] - counts[3] == 2 * of_a_line
