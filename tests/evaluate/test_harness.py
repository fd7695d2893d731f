"""lm-eval's tasks on our models: what lm-eval computes with its own `hf`, on any mesh."""

import json

import golden_tasks
import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval")

from maxlm.convert.importing import import_folder  # noqa: E402
from maxlm.errors import ConfigError, DataError  # noqa: E402
from maxlm.evaluate.harness import asked_for, room_for  # noqa: E402
from maxlm.evaluate.load import find_source, load_source  # noqa: E402
from maxlm.evaluate.placing import named_mesh  # noqa: E402
from maxlm.evaluate.task_command import build, described  # noqa: E402
from maxlm.evaluate.tasks import Wanted, aggregate, evaluate_task, open_tasks, settings  # noqa: E402

FOLDER = str(golden_tasks.TASKS)
GOLDEN = json.loads(golden_tasks.GOLDEN.read_text())
CASES = [("begun", name, False) for name in golden_tasks.NAMES]
CASES += [("begun", name, True) for name in golden_tasks.CHAT] + [("plain", name, False) for name in golden_tasks.NAMES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return {name: golden_tasks.write_folder(directory / name, name == "begun") for name in ("begun", "plain")}


@pytest.fixture(scope="module")
def models(folders):
    meshes = {name: named_mesh("data=1", jax.devices()) for name in folders}
    return {name: build(load_source(find_source(path), mesh=meshes[name]), 8) for name, path in folders.items()}


@pytest.fixture(scope="module")
def opened():
    return {chat: open_tasks(Wanted(["python", *golden_tasks.NAMES], FOLDER, chat=chat)) for chat in (False, True)}


def near(found: object, expected: object) -> None:
    """Texts and decisions alike, figures within 0.001."""
    assert json.dumps(_without(found)) == json.dumps(_without(expected))
    np.testing.assert_allclose(_numbers(found), _numbers(expected), atol=1e-3, rtol=1e-5)


def _without(tree: object) -> object:
    return jax.tree.map(lambda leaf: 0 if isinstance(leaf, float) else leaf, tree)


def _numbers(tree: object) -> list[float]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, float)]


@pytest.mark.parametrize(("kind", "name", "chat"), CASES)
def test_answers_and_figures_are_those_of_hf(models, opened, kind, name, chat):
    expected = GOLDEN[kind][f"{name} chat" if chat else name]
    found = evaluate_task(opened[chat], name, models[kind])
    near(golden_tasks.responses(opened[chat].tasks[name]), expected["answers"])
    near(found["metrics"], expected["metrics"])
    assert found["items"] == sum(1 for _ in (golden_tasks.TASKS / f"{name}.jsonl").open())


def test_what_is_too_long_is_told(models):
    """With four examples questions are longer than 192 bytes; letters are not, and windows cut nothing."""
    tasks = open_tasks(Wanted(["completions"], FOLDER, shots=4))
    assert evaluate_task(tasks, "completions", models["plain"])["cut"] > 0
    tasks = open_tasks(Wanted(["letters", "prose"], FOLDER))
    assert not any("cut" in evaluate_task(tasks, name, models["plain"]) for name in tasks.tasks)


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=4,tensor=2"])
def test_eight_devices_give_the_figures_of_one(folders, opened, mesh):
    model = build(load_source(find_source(folders["begun"]), mesh=named_mesh(mesh, jax.devices())), 8)
    for name in ("letters", "prose", "answers"):
        found = evaluate_task(opened[False], name, model)
        near(golden_tasks.responses(opened[False].tasks[name]), GOLDEN["begun"][name]["answers"])
        near(found["metrics"], GOLDEN["begun"][name]["metrics"])


def test_a_group_is_the_mean_over_the_questions_of_its_tasks(opened):
    lines = {
        "completions": {"metrics": {"acc": 0.75, "acc_norm": 1.0}, "stderr": {"acc": 0.1}, "items": 16},
        "letters": {"metrics": {"acc": 0.5}, "stderr": {"acc": 0.2}, "items": 10},
    }
    found = aggregate(opened[False], lines)
    assert found["python"]["items"] == 26
    assert found["python"]["metrics"] == {"acc": pytest.approx((16 * 0.75 + 10 * 0.5) / 26)}
    assert 0.05 < found["python"]["stderr"]["acc"] < 0.2


def test_settings_follow_what_changes_results_and_nothing_else(models, opened, tmp_path):
    read = described(models["begun"], opened[False])
    found = settings(opened[False], "letters", read)
    assert found == settings(open_tasks(Wanted(["letters"], FOLDER)), "letters", read)
    assert {"kind", "lm_eval", "limit", "shots", "version", "config", "max_length", "dtype"} <= set(found)
    folder = tmp_path / "moved"
    folder.mkdir()
    for path in golden_tasks.TASKS.glob("letters.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert found == settings(open_tasks(Wanted(["letters"], str(folder))), "letters", read)  # wherever it is
    for name, before, after in (("letters.yaml", "Answer:", "Reply:"), ("letters.jsonl", "loop", "repetition")):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(before, after))
        assert found != settings(open_tasks(Wanted(["letters"], str(folder))), "letters", read)
        (folder / name).write_text(text)
    changed = open_tasks(Wanted(["letters"], FOLDER, shots=1, limit=3))
    assert settings(changed, "letters", read) == found | {"shots": 1, "limit": 3, "config": changed_hash(changed, read)}
    chat = described(models["begun"], opened[True])
    assert chat["chat_template"] and read["chat_template"] is None


def changed_hash(tasks, read) -> str:
    return settings(tasks, "letters", read)["config"]


def test_opening_leaves_no_trace_in_random_numbers():
    import random

    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    open_tasks(Wanted(["letters"], FOLDER))
    assert (random.random(), np.random.random()) == expected


def test_an_unknown_task_is_told_with_the_nearest(monkeypatch):
    from lm_eval.tasks import TaskManager

    class Small(TaskManager):  # lm-eval's own are thousands of files
        def __init__(self, include_path=None, include_defaults=True):
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Small)
    with pytest.raises(ConfigError, match=r"task complitions: unknown; the nearest are completions.*$"):
        open_tasks(Wanted(["complitions"], FOLDER))
    assert set(open_tasks(Wanted(["c*"], FOLDER)).tasks) == {"completions", "cloze"}


def test_data_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "lost.yaml").write_text((golden_tasks.TASKS / "letters.yaml").read_text())
    with pytest.raises(
        DataError, match=r"task letters: .*letters\.jsonl: no such file; a task's data_files .*"
    ) as told:
        open_tasks(Wanted(["letters"], str(tmp_path)))
    assert "\n" not in str(told.value)
    text = (golden_tasks.TASKS / "letters.yaml").read_text()
    (tmp_path / "lost.yaml").write_text(text.replace("dataset_path: json", "dataset_path: nobody/nothing"))
    with pytest.raises(DataError, match="task letters: cannot be opened, its data may not be here .*HF_HUB_OFFLINE=0"):
        open_tasks(Wanted(["letters"], str(tmp_path)))
    with pytest.raises(DataError, match="no such directory"):
        open_tasks(Wanted(["letters"], str(tmp_path / "none")))


def test_tasks_that_cannot_be_asked_are_refused(tmp_path):
    text = (golden_tasks.TASKS / "letters.yaml").read_text()
    data = str(golden_tasks.TASKS / "letters.jsonl")
    (tmp_path / "task.yaml").write_text(text.replace("letters.jsonl", data) + "unsafe_code: true\n")
    with pytest.raises(ConfigError, match="task letters: runs programs that the model writes"):
        open_tasks(Wanted(["letters"], str(tmp_path)))


def test_generation_is_asked_for_as_in_hf():
    assert asked_for({"until": "\n"}, "t") == asked_for(
        {"until": ["\n", ""], "max_gen_toks": 256, "do_sample": False}, "t"
    )
    assert asked_for({"max_tokens": 5, "max_gen_toks": 7}, "t").max_tokens == 7
    assert asked_for({"temperature": 0.5}, "t").sampling.temperature == 0.5
    assert asked_for({"temperature": 0.5, "do_sample": False}, "t").sampling.temperature == 0
    assert asked_for({"do_sample": True, "top_p": 0.9}, "t").sampling.temperature == 1
    with pytest.raises(ConfigError, match="task t: its generation_kwargs have repetition_penalty, expected"):
        asked_for({"repetition_penalty": 1.2}, "t")
    with pytest.raises(ConfigError, match="task t: asks for 12 new tokens, and the model is made for 12"):
        room_for({"max_gen_toks": 12}, "t", 12)


def test_an_imported_model_answers_like_its_folder(folders, tmp_path):
    import_folder(folders["plain"], tmp_path / "imported", None)
    model = build(load_source(find_source(tmp_path / "imported"), mesh=named_mesh("data=1", jax.devices())), 8)
    tasks = open_tasks(Wanted(["letters"], FOLDER))
    near(evaluate_task(tasks, "letters", model)["metrics"], GOLDEN["plain"]["letters"]["metrics"])


@pytest.mark.skipif("not __import__('importlib.util').util.find_spec('torch')", reason="needs lm-eval[hf]")
def test_live_results_of_hf(folders, models, opened):
    for name in ("transformers", "accelerate", "peft"):
        pytest.importorskip(name)
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(folders["begun"]), device="cpu", dtype="float32", batch_size=8)
    for name in golden_tasks.NAMES:
        expected = evaluate_task(opened[False], name, theirs)["metrics"]
        near(evaluate_task(opened[False], name, models["begun"])["metrics"], expected)
