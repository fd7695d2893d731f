"""`maxlm inspect` as a user types it, on runs of real documents."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maxlm.config import load, to_yaml
from maxlm.data import records
from maxlm.data.loader import Batches
from maxlm.data.shards import Shards
from maxlm.data.sources import open_sources
from maxlm.data.tokenizer import Tokenizer
from maxlm.train.position import layout

ROOT = Path(__file__).parents[2]
FOLDERS = {"model": ROOT / "maxlm", "prep": ROOT / "data_prep"}  # of which the sources were prepared


def batches_of(run) -> Batches:
    schedule = run.position.schedule
    steps = schedule.steps(run.config.total_tokens)
    return Batches(run.sources.train, schedule, rows={8: range(8)}, num_steps=steps)


def test_documents_of_a_step_are_decoded_tokens_of_its_batch_and_parts_of_the_files(standing, answer):
    shards = standing.sources.train["model"].shards
    tokenizer = Tokenizer(shards.directory / "tokenizer", shards.manifest.tokenizer)
    batches = batches_of(standing)
    for step in (1, 5, 6, 8, 9, 12, 13, 40):
        found, batch = answer(standing.dir, "--step", step), batches[step - 1]
        span = batches.schedule.span(step - 1)
        assert (found["step"], found["batch_size"], found["examples"]) == (step, 8, span.examples)
        assert found["state"] == ("read" if step <= 12 else "to come") and found["more"] is False
        assert Counter(one["row"] for one in found["documents"]) == Counter(
            {row: int(batch["segment_ids"][row].max()) for row in range(span.examples)}
        )
        for one in found["documents"]:
            row, (low, high) = one["row"], one["slots"]
            assert one["text"] == tokenizer.decode(batch["tokens"][row, low:high])
            assert len(set(batch["segment_ids"][row, low:high].tolist())) == 1
            assert one["source"] == batches.names[batch["sources"][row]] == one["document"]["source"]
            name = one["document"]["id"].removeprefix(f"{one['source']}/")
            text = (FOLDERS[one["source"]] / name).read_text()
            assert one["text"].strip("\ufffd") in text and one["document"]["bytes"] == len(text.encode())
            assert one["document"]["steps"] == [["ingest", name]]
            first = found["slots"][0] + row * found["seq_len"]
            assert one["slots_of_run"] == [first + low, first + high]
        assert found["pipelines"].keys() == {one["source"] for one in found["documents"]}
        assert found["pipelines"]["model"]["tokenizer"]["algorithm"] == "byte_bpe"


def test_an_example_is_a_part_of_its_step(standing, answer):
    whole = answer(standing.dir, "--step", 9)["documents"]
    for row in range(8):
        one = answer(standing.dir, "--step", 9, "--example", row)["documents"]
        assert one == [document for document in whole if document["row"] == row] and one


def test_slots_are_cut_at_both_ends_and_cross_steps_and_shapes(standing, answer):
    steps = {step: answer(standing.dir, "--step", step) for step in (7, 8, 9)}
    low, high = steps[7]["slots"][0] + 37, steps[9]["slots"][0] + 70
    found = answer(standing.dir, "--tokens", f"{low}:{high}")["documents"]
    covered = [slot for one in found for slot in range(*one["slots_of_run"])]
    assert covered == list(range(low, high))
    assert {one["step"] for one in found} == {7, 8, 9}
    whole = [one for step in steps.values() for one in step["documents"]]
    for one in found:
        (same,) = [
            other
            for other in whole
            if other["slots_of_run"][0] <= one["slots_of_run"][0] and other["slots_of_run"][1] >= one["slots_of_run"][1]
        ]
        moved = one["slots_of_run"][0] - same["slots_of_run"][0]
        assert one["tokens"][0] == same["tokens"][0] + moved and one["document"] == same["document"]
        assert one["slots"][0] == same["slots"][0] + moved
    assert answer(standing.dir, "--tokens", "1_000:1.001e3")["documents"][0]["slots_of_run"] == [1000, 1001]


def test_a_document_names_the_steps_that_name_it(standing, answer):
    steps = answer(standing.dir, "--mixture")["steps"]
    counted, by_document = Counter(), Counter()
    for step in range(1, steps + 1):
        for one in answer(standing.dir, "--step", step)["documents"]:
            key = one["document"]["id"], one["step"], one["row"], tuple(one["tokens"]), tuple(one["slots"])
            counted[key] += 1
            by_document[one["document"]["id"]] += 1
    undone = 0
    # The twelve largest, and as many more as it takes to come upon one in a step that the rewind undid.
    for number, (document, _) in enumerate(by_document.most_common()):
        if number >= 12 and undone:
            break
        (found,) = answer(standing.dir, "--document", document)["documents"]
        assert found["document"]["id"] == document and found["left_out"] == 0
        listed = Counter(
            (document, one["step"], one["row"], tuple(span["tokens"]), tuple(span["slots"]))
            for one in found["readings"]
            if one["state"] != "undone"
            for span in one["spans"]
        )
        assert listed == Counter({key: count for key, count in counted.items() if key[0] == document})
        assert all((one["step"] <= 12) == (one["state"] != "to come") for one in found["readings"])
        assert sum(found["counts"].values()) == len(found["readings"])
        undone += found["counts"]["undone"]
    assert undone


def test_a_rewind_leaves_what_it_skipped_to_be_told(standing, answer, inspect):
    rewound = next(segment for segment in standing.position.schedule.segments if segment.kind == "rewind")
    assert (rewound.first_step, rewound.first_example) == (5, 56)
    steps = Counter()
    for source in standing.sources.train.values():
        for document in pq.read_table(source.shards.directory / "documents-00000.parquet")["id"].to_pylist():
            (found,) = answer(standing.dir, "--document", document)["documents"]
            undone = [one for one in found["readings"] if one["state"] == "undone"]
            steps.update(one["step"] for one in undone)
            assert found["counts"]["undone"] == len(undone)
            assert all(40 <= one["example"] < 56 for one in undone)
            if undone:
                last = document
    assert set(steps) == {6, 7} and sum(steps.values()) >= 16
    assert "read, then undone by a rewind" in inspect(standing.dir, "--document", last)[1]


def test_a_limit_shortens_lists_and_says_so(standing, answer, inspect):
    found = answer(standing.dir, "--step", 9, "--limit", 3)
    assert len(found["documents"]) == 3 and found["more"] is True
    assert "more than 3 documents" in inspect(standing.dir, "--step", 9, "--limit", 3)[1]
    document = answer(standing.dir, "--step", 9)["documents"][0]["document"]["id"]
    (whole,), (short,) = (
        answer(standing.dir, "--document", document, *words)["documents"] for words in ((), ("--limit", 1))
    )
    assert short["readings"] == whole["readings"][:1] and short["left_out"] == len(whole["readings"]) - 1 > 0
    assert f"and {short['left_out']} more" in inspect(standing.dir, "--document", document, "--limit", 1)[1]


def test_tables_show_documents_and_how_they_were_prepared(standing, inspect, answer):
    code, out, err = inspect(standing.dir, "--step", 9)
    assert (code, err) == (0, "")
    assert "as of the checkpoint of step 12" in out and "step 9 of 48, read: 8 examples of 64 tokens" in out
    documents = [one["document"]["id"] for one in answer(standing.dir, "--step", 9)["documents"]]
    assert documents and all(document in out for document in documents)
    assert "tokenizer: algorithm byte_bpe" in out and "preparation of model, prep" in out
    found = (answer(standing.dir, "--document", document)["documents"][0] for document in documents)
    document = next(one["document"]["id"] for one in found if one["counts"]["read"] and one["counts"]["to_come"])
    out = inspect(standing.dir, "--document", document)[1]
    assert "times until step 12" in out and "to come" in out
    long = inspect(standing.dir, "--step", 9, "--full")[1]
    assert len(long) > len(inspect(standing.dir, "--step", 9)[1])


def test_a_step_that_is_filled_up_says_so(standing, inspect, answer):
    found = answer(standing.dir, "--step", 8)
    assert (found["examples"], found["batch_size"]) == (3, 8)
    assert {one["row"] for one in found["documents"]} == {0, 1, 2}
    assert "8 examples of 32 tokens, 5 of them empty" in inspect(standing.dir, "--step", 8)[1]


def test_a_configuration_is_what_its_run_begins_with(make_config, answer, inspect, tmp_path):
    config = make_config(name="later")
    path = tmp_path / "later.yaml"
    path.write_text(to_yaml(config))
    found = answer(path, "--step", 3)
    assert found["state"] == "to come" and found["checkpoint"] is None and found["steps"] == 20
    config.run_dir.mkdir(parents=True)
    shutil.copy(path, config.run_dir / "config.yaml")
    assert answer(config.run_dir, "--step", 3)["documents"] == found["documents"]
    assert answer(path, "seed=1", "--step", 3)["documents"] != found["documents"]
    assert "has not begun" in inspect(path, "--step", 3)[1]


def test_a_configuration_whose_run_has_begun_points_to_it(standing, inspect, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(standing.config))
    code, out, err = inspect(path, "--step", 3, "--json")
    assert code == 0 and f"maxlm inspect {standing.dir} shows" in err
    assert json.loads(out)["checkpoint"] is None


def test_a_checkpoint_can_be_named_instead_of_its_run(standing, answer):
    newest = standing.dir / "checkpoints" / "12"
    assert answer(newest, "--step", 9)["documents"] == answer(standing.dir, "--step", 9)["documents"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--step", 49), 2, "--step 49: the run has 48 steps; expected 1 to 48"),
        (("--step", 0), 2, "--step 0: the run has 48 steps"),
        (("--step", 9, "--example", 8), 2, "--example 8 of step 9, which has 8 examples; expected 0 to 7"),
        (("--step", 8, "--example", 5), 2, "--example 5 of step 8 is empty: the step has 3 examples"),
        (("--tokens", "5"), 2, "--tokens 5: expected A:B"),
        (("--tokens", "5:nan"), 2, "expected A:B"),
        (("--tokens", "5:5"), 2, "the run has 22,368 slots; expected A:B with 0 <= A < B <= 22368"),
        (("--tokens", "0:22369"), 2, "the run has 22,368 slots"),
        (("--document", "prep/engine/task.py"), 3, "the nearest is prep/engine/tasks.py"),
        (
            ("--document", "https://example.org"),
            3,
            "not in model, prep; preparation may have dropped it; ids of model are",
        ),
        (("--document", "prep/engine/tasks.py", "--source", "model"), 3, "not in model; it is in prep"),
        (("--document", "x", "--source", "web"), 2, "--source web: the run has model, prep"),
        ((), 2, "expected one of --step, --tokens, --document, --mixture, found none"),
        (("--step", 1, "--mixture"), 2, "found --step and --mixture"),
        (("--mixture", "--example", 1), 2, "--example goes with --step, found --mixture"),
        (("--step", 1, "--source", "prep"), 2, "--source goes with --document"),
        (("seed=1", "--step", 1), 2, "override 'seed=1': the run has begun, so only data.sources.NAME.path"),
        (("data.sources.web.path=x", "--step", 1), 2, "override 'data.sources.web.path=x': the run has begun"),
    ],
)
def test_what_cannot_be_shown_is_one_line(standing, inspect, words, code, message):
    found, out, err = inspect(standing.dir, *words)
    assert (found, out) == (code, ""), err
    (line,) = err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_held_out_document_is_named_as_such(standing, inspect):
    shards = standing.sources.validation["model"]
    document = pq.read_table(shards.directory / "documents-00000.parquet")["id"][0].as_py()
    code, _, err = inspect(standing.dir, "--document", document)
    assert code == 3 and "is held out in model (data.validation), so training never reads it" in err


def test_data_that_have_moved_are_found_where_they_are_now(standing, answer, tmp_path):
    moved = []
    for key, path in (("sources.model", "model"), ("sources.prep", "prep"), ("validation.model", "model-val")):
        directory = Path(standing.config.data.sources["model"].path).parent / path
        moved.append(f"data.{key}.path={shutil.copytree(directory, tmp_path / 'moved' / path)}")
    whole = answer(standing.dir, "--step", 9)
    for section in (standing.config.data.sources, standing.config.data.validation):
        for name in section:
            section[name] = section[name].model_copy(update={"path": "gone"})
    standing.write()
    assert answer(standing.dir, *moved, "--step", 9) == whole


def test_data_prepared_anew_are_refused(standing, inspect):
    standing.manifests["prep"] = "0" * 64
    standing.write()
    for words in (("--step", 1), ("--mixture",), ("--document", "prep/engine/tasks.py")):
        code, out, err = inspect(standing.dir, *words)
        assert (code, out) == (
            3,
            "",
        ) and "prep: was prepared anew since the checkpoint of step 12 (manifest 0000" in err


def test_what_is_no_run_is_refused(inspect, tmp_path):
    for path, code, message in [
        (tmp_path / "none", 3, "no such directory"),
        (tmp_path, 3, "holds neither a checkpoint nor a config.yaml"),
        (tmp_path / "none.yaml", 2, "no such configuration file"),
    ]:
        found, out, err = inspect(path, "--step", 1)
        assert (found, out) == (code, "") and message in err


def test_text_that_a_terminal_would_obey_is_written_as_numbers(standing, inspect):
    path = standing.sources.train["model"].shards.directory / "documents-00000.parquet"
    copy = standing.dir / "prepared"
    shutil.copytree(path.parent, copy)
    table = pq.read_table(path)
    urls = ["https://a/\x1b[2J\u202e[bold]"] * table.num_rows
    pq.write_table(table.set_column(table.schema.get_field_index("url"), "url", [urls]), copy / path.name)
    source = {**standing.config.data.model_dump(mode="json"), "validation": {}}
    source["sources"]["model"]["path"] = str(copy)
    standing.config = standing.config.model_validate(standing.config.model_dump(mode="json") | {"data": source})
    standing.write()
    out = inspect(standing.dir, "--step", 9)[1]
    assert "\x1b[2J" not in out and "\u202e" not in out and r"\x1b[2J\x202e[bold]" in out.replace(" ", "")


def test_looking_imports_no_jax(standing):
    program = (
        "import sys; from maxlm import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "assert not {'jax', 'flax', 'orbax', 'grain'} & {name.partition('.')[0] for name in sys.modules}"
    )
    for words in (["--step", "9"], ["--document", "prep/engine/tasks.py"], ["--mixture"]):
        command = [sys.executable, "-c", program, "inspect", str(standing.dir), *words]
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def test_documents_that_are_packed_whole_are_those_of_the_batch(standing, answer, inspect, tmp_path):
    data = standing.config.data.model_dump(mode="json") | {"packing": "bestfit", "overlong": "split"}
    path = tmp_path / "packed.yaml"
    path.write_text(to_yaml(standing.config.model_validate(standing.config.model_dump(mode="json") | {"data": data})))
    config = load(path, ["name=packed"])
    sources = open_sources(config.data, config.model.vocab_size, config.seed).train
    schedule = layout(config, sources).begin()
    batches = Batches(sources, schedule, rows={8: range(8)}, num_steps=schedule.steps(config.total_tokens))
    tokenizer = Tokenizer(sources["model"].shards.local_tokenizer(), sources["model"].shards.manifest.tokenizer)
    for step in (1, 12, 30):
        batch = batches[step - 1]
        for one in answer(path, "name=packed", "--step", step)["documents"]:
            low, high = one["slots"]
            assert one["text"] == tokenizer.decode(batch["tokens"][one["row"], low:high])
    document = one["document"]["id"]
    (found,) = answer(path, "name=packed", "--document", document)["documents"]
    spans = [span["tokens"] for read in found["readings"] if read["step"] == step for span in read["spans"]]
    assert one["tokens"] in spans


def test_a_document_that_packing_leaves_out_is_never_read(make_config, answer, inspect, tmp_path):
    shards = Shards(make_config().data.sources["model"].path)
    spans = [shards.span(0, row) for row in range(shards.manifest.documents)]
    *_, second, longest = sorted((stop - first, row) for row, (first, stop) in enumerate(spans))
    config = make_config(
        {
            "data.packing": "bestfit",
            "data.overlong": "drop",
            "data.seq_len": second[0],
            "train.batch_tokens": second[0] * 8,
            "data.mixture": [{"tokens": second[0] * 800, "weights": {"model": 1}}],
        },
        name="dropped",
    )
    path = tmp_path / "dropped.yaml"
    path.write_text(to_yaml(config))
    (kept,), (dropped,) = (
        answer(path, "--document", records.read(shards, [(0, row)])[0]["id"])["documents"]
        for _, row in (second, longest)
    )
    assert len(kept["readings"]) > 1 and dropped["readings"] == [] and set(dropped["counts"].values()) == {0}
    shown = inspect(path, "--document", dropped["document"]["id"])[1]
    assert "no window that the run reads has it" in shown


def test_what_fill_in_the_middle_rearranges_is_marked(make_config, answer, inspect, tmp_path):
    sentinels = {"prefix": "Q", "suffix": "Z", "middle": "X"}  # any tokens will do
    config = make_config({"data.sources.prep.fim": {"rate": 0.5, "level": "token"} | sentinels}, name="filled")
    path = tmp_path / "filled.yaml"
    path.write_text(to_yaml(config))
    sources = open_sources(config.data, config.model.vocab_size, config.seed).train
    schedule = layout(config, sources).begin()
    batches = Batches(sources, schedule, rows={8: range(8)}, num_steps=20)
    tokenizer = Tokenizer(sources["prep"].shards.local_tokenizer(), sources["prep"].shards.manifest.tokenizer)
    marks = Counter()
    for step in range(1, 21):
        for one in answer(path, "--step", step)["documents"]:
            trained = tokenizer.decode(batches[step - 1]["tokens"][one["row"], slice(*one["slots"])])
            assert (one["text"] != trained) == one["rearranged"]
            marks[one["source"], one["rearranged"]] += 1
        if marks["prep", True] and "rearranged by fill-in-the-middle" in inspect(path, "--step", step)[1]:
            break
    assert marks["prep", True] and marks["model", False] and not marks["model", True]


def test_what_follows_from_losses_that_are_to_come_is_told(make_config, answer, inspect, tmp_path):
    dynamic = {"data.dynamic": {"name": "online", "every_steps": 3}}
    path = tmp_path / "online.yaml"
    path.write_text(to_yaml(make_config(dynamic, name="online")))
    assert (answer(path, "--step", 1)["known_steps"], answer(path, "--step", 1)["steps"]) == (6, 20)
    assert "its mixture follows the losses: steps after 6 are as it would be unchanged" in inspect(path, "--step", 1)[1]
