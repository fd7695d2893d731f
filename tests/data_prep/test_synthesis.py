"""Seeds become documents: prompts, answers, scores, filters, and what is written of all of them."""

import json
import os
from dataclasses import astuple

import pyarrow.parquet as pq
import pytest
from answer_server import AnswerServer
from rich.console import Console

from data_prep.config import IngestConfig, SourceConfig, Synthesis
from data_prep.ingest.shards import make_tasks
from data_prep.manifest import Folder
from data_prep.synthesize.answers import Answer, Invalid, Shape
from data_prep.synthesize.journal import Journal
from data_prep.synthesize.prompts import Prompt, Template, choose
from data_prep.synthesize.recipe import Recipe, copied
from data_prep.synthesize.run import synthesize
from data_prep.synthesize.seeds import FIELDS, Seed
from maxlm.config import json_schema, validate
from maxlm.errors import ConfigError, DataError, MaxlmError

SCHEMA = {
    "type": "object",
    "properties": {"problem": {"type": "string"}, "solution": {"type": "string"}},
    "required": ["problem", "solution"],
}
QUESTION = 'From {text} make {"problem": "...", "solution": "..."} for {id} in {language}.'
SCORE = '=== system\nYou judge.\n=== user\nJudge {problem}: {solution} of {text}. Say {"score": 1 to 5}.'


@pytest.fixture
def server():
    with AnswerServer(latency=0) as one:
        yield one


@pytest.fixture
def recipe(tmp_path, texts):
    """A configuration over 40 of the texts, its sections replaced by keyword arguments."""
    (tmp_path / "seeds.jsonl").write_text(
        "".join(
            json.dumps({"id": f"s{number}", "text": text, "lang": "zh-CN" if number % 4 == 0 else "en"}) + "\n"
            for number, text in enumerate(texts[:40])
        )
    )
    (tmp_path / "question.txt").write_text(QUESTION)
    (tmp_path / "score.txt").write_text(SCORE)
    source = {"kind": "jsonl", "path": str(tmp_path / "seeds.jsonl"), "id_field": "id", "language_field": "lang"}

    def make(url="http://127.0.0.1:9/v1", **sections):
        values = {
            "name": "test",
            "output": str(tmp_path / "made"),
            "workers": 1,
            "ingest": {"sources": {"web": source}},
            "server": {"url": url, "model": "made-up", "longest_pause": 0.05} | sections.pop("server", {}),
            "generate": {"prompts": {"qa": {"file": str(tmp_path / "question.txt")}}, "max_tokens": 200},
            "answer": {"schema": SCHEMA},
            "text": "{problem}\n\n{solution}",
        }
        return validate(values | sections, Synthesis, "test")

    return make


@pytest.fixture
def scored(tmp_path):
    return {"score": {"prompts": {"judge": {"file": str(tmp_path / "score.txt")}}, "min_score": 3, "max_tokens": 50}}


def run(config):
    """What it printed, and the lines and the summary that it left."""
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        synthesize(config, console)
    return console.export_text(), *left_by(config)


def left_by(config):
    def lines(name):
        files = sorted(config.directory.glob(f"{name}-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    return lines("documents"), lines("dropped"), json.loads((config.directory / "synthesis.json").read_text())


def count(server, outcome="answered"):
    return sum(entry.outcome == outcome for entry in server.entries)


def seed_of(number=0, language="en", draw=0.5, text="a text"):
    return Seed(f"web/s{number}", "web", None, language, text, draw)


def said(content, finish="stop"):
    return Answer(content, finish, 10, 5, True, 0.0, "2026-01-01T00:00:00+00:00")


# --- prompts and answers ----------------------------------------------------------------------------------------------


def test_only_names_in_braces_are_fields_and_values_are_not_looked_into():
    template = Template.checked('{text}: {"a": {"b": 1}} {{text}} { text } {}', FIELDS, "file")
    assert template.fill({"text": "{id} {{text}}"}) == '{id} {{text}}: {"a": {"b": 1}} {text} { text } {}'
    with pytest.raises(ConfigError, match=r"p.txt: unknown field \{frac\}; known here: id, source, .*\{\{frac\}\}"):
        Template.checked(r"{text} \sqrt{frac}", FIELDS, "p.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{question}", "unknown field"),
        ("=== user\nx\n=== system\ny", "its parts are user, system"),
        ("before\n=== user\nx", "its parts are user"),
        ("=== system\nx\n=== user\n", "no text for the user's part"),
        (None, "cannot be read"),
    ],
)
def test_a_prompt_that_cannot_work_is_named_before_anything_is_asked(tmp_path, recipe, text, message):
    config = recipe()
    path = tmp_path / "question.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ConfigError, match=f"question.txt: .*{message}"):
        run(config)
    assert not config.directory.exists()


def test_prompts_are_drawn_by_weight_among_those_for_the_language():
    def prompt(name, weight, languages):
        return Prompt(name, "", (), weight, languages and frozenset(languages))

    prompts = [prompt("one", 1, {"en"}), prompt("three", 3, {"en", "de"}), prompt("zh", 1, {"zh"})]
    drawn = [choose(prompts, seed_of(draw=place / 1000)).name for place in range(1000)]
    assert drawn.count("one") == 250 and drawn.count("three") == 750
    assert choose(prompts, seed_of(language="zh-TW")).name == "zh"
    assert choose(prompts, seed_of(language=None)) is None
    assert choose([*prompts, prompt("any", 1, None)], seed_of(language=None)).name == "any"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"problem": "p", "solution": "s"}', {"problem": "p", "solution": "s"}),
        ('Here it is:\n```json\n{"problem": "p", "solution": "s"}\n```\nDone.', {"problem": "p", "solution": "s"}),
        ("no", "not JSON"),
        ('{"problem": "\\ud800", "solution": "s"}', "not JSON"),
        ('{"problem": NaN, "solution": "s"}', "not JSON"),
        ('{"problem": "p", "solution": "s", "more": 1e999}', "not JSON"),
        ('{"problem": "say ```py x``` ", "solution": "s"}', {"problem": "say ```py x``` ", "solution": "s"}),
        ('```\n{"problem": "```", "solution": "s"}```', {"problem": "```", "solution": "s"}),
        ("```json\nno\n```", "not JSON"),
        ('<think>\n{"no": "no"}\n</think>\n\n{"problem": "p", "solution": "s"}', {"problem": "p", "solution": "s"}),
        ('{"problem": "<think>x</think>", "solution": "s"}', {"problem": "<think>x</think>", "solution": "s"}),
        ("<think>nothing else</think>\n", "empty"),
        ("[" * 100_000, "not JSON"),
        ('{"problem": "p", "solution": 3}', "schema"),
        ('["problem"]', "schema"),
        (" \n", "empty"),
    ],
)
def test_an_answer_meets_the_schema_or_has_a_reason(content, expected):
    found = Shape.load(SCHEMA).read(said(content))
    assert (found.reason if isinstance(found, Invalid) else found) == expected


def test_an_answer_that_was_cut_off_is_not_used():
    whole = '{"problem": "p", "solution": "s"}'
    assert Shape.load(SCHEMA).read(said(whole, "length")) == Invalid("cut off")
    assert Shape.load(None).read(said("text", "content_filter")) == Invalid("content filter")
    assert Shape.load(None).read(said("text")) == {"answer": "text"}


def test_schemas_are_read_from_files_and_fetch_nothing(tmp_path, recipe):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert Shape.load(str(tmp_path / "schema.json")).fields == ("problem", "solution")
    remote = SCHEMA | {"properties": {"problem": {"$ref": "http://127.0.0.1:9/a.json"}}}
    refused = {
        "not a JSON schema": {"type": "objekt"},
        "expected a schema of 'type: object'": {"type": "array"},
        "nothing is fetched": remote,
        "is a field of seeds": {"type": "object", "required": ["text"]},
    }
    for message, schema in refused.items():
        with pytest.raises(ConfigError, match=message):
            run(recipe(answer={"schema": schema}))
    with pytest.raises(ConfigError, match="text: unknown field"):
        run(recipe(text="{question}"))
    with pytest.raises(ConfigError, match="cannot be read"):
        run(recipe(answer={"schema": str(tmp_path / "none.json")}))
    missing = SCHEMA | {"properties": {"problem": {"$ref": "#/$defs/none"}}}
    with pytest.raises(ConfigError, match="refers to what it does not have"):
        Shape.load(missing).read(said('{"problem": "p", "solution": "s"}'))


def test_what_is_copied_is_a_share_of_sequences_of_words():
    prompt = " ".join(f"w{number}" for number in range(40))
    assert copied(prompt, prompt) == 1 and copied("W0 w1 w2 w3, w4 w5 w6", prompt) == 0
    assert copied(" ".join(f"w{number}" for number in [*range(11), *range(100, 111)]), prompt) == pytest.approx(4 / 15)
    assert copied("今天我们学习中文的语法和词汇", "我说:今天我们学习中文的语法和词汇。") == 1


def test_an_invalid_answer_is_asked_for_again_with_another_key_and_seed(recipe):
    config = recipe(answer={"schema": SCHEMA, "repairs": 2}, generate=recipe().generate.model_copy(update={"seed": 7}))
    answers, asked = {}, []
    while hasattr(request := Recipe(config).follow(seed_of(), answers.get), "body"):
        asked.append(request)
        answers[request.key] = said("no" if len(asked) < 3 else '{"problem": "p", "solution": "s"}')
    assert [one.body["seed"] for one in asked] == [7, 8, 9] and len({one.key for one in asked}) == 3
    assert request.text == "p\n\ns" and list(request.trail.answers) == [one.key for one in asked]
    answers[asked[-1].key] = said("no")
    assert Recipe(config).follow(seed_of(), answers.get).reason == "answer: not JSON"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_documents_have_their_whole_pedigree_and_the_others_their_reason(recipe, scored, server):
    config = recipe(server.url, **scored)
    printed, documents, dropped, summary = run(config)
    assert len(documents) + len(dropped) == 40 == summary["seeds"] and documents and dropped
    assert {entry["reason"] for entry in dropped} == {"score"} and not any("text" in entry for entry in dropped)
    assert summary["kept"] == len(documents) and summary["dropped"] == {"score": len(dropped)}
    assert summary["requests"] == summary["answered"] == 80 == count(server) and summary["in_doubt"] == 0
    assert summary["output_tokens"] == sum(entry.output_tokens for entry in server.entries)
    assert f"40 seeds: {len(documents)} kept, {len(dropped)} dropped (score {len(dropped)})" in printed
    keys = [key for entry in (*documents, *dropped) for key in entry["synthesis"]["requests"]]
    assert sorted(keys) == sorted(entry.key for entry in server.entries)
    one = documents[0]
    made = one["synthesis"]
    assert one["id"] == f"{made['seed']['id']}#qa" and made["seed"]["source"] == "web"
    assert one["text"].startswith("What have") and "\n\n" in one["text"]
    assert made["template"]["name"] == "qa" and len(made["template"]["hash"]) == 32
    assert made["score"]["score"] >= 3 and made["model"] == "made-up" and made["time"].startswith("20")
    assert made["sampling"] == {"answer": {"max_tokens": 200}, "score": {"max_tokens": 50}}
    assert made["usage"]["input_tokens"] > 0 and len(made["requests"]) == 2
    numbers = [entry["synthesis"]["seed"]["id"] for entry in documents]
    order = [f"web/s{number}" for number in range(40)]
    assert numbers == sorted(numbers, key=order.index)


def test_a_changed_threshold_asks_nothing_and_a_changed_prompt_asks_anew(tmp_path, recipe, scored, server):
    config = recipe(server.url, **scored)
    _, documents, *_ = run(config)
    before = {path: path.stat().st_mtime_ns for path in config.directory.glob("*.jsonl")}
    assert run(config)[1] == documents and count(server) == 80
    assert before == {path: path.stat().st_mtime_ns for path in config.directory.glob("*.jsonl")}
    _, fewer, *_ = run(recipe(server.url, score=scored["score"] | {"min_score": 5}))
    assert len(fewer) < len(documents) and count(server) == 80
    _, several, *_ = run(recipe(server.url, filter={"max_characters": 5}, **scored))
    assert not several and count(server) == 80
    (tmp_path / "score.txt").write_text(SCORE + " Be kind.")
    run(config)
    assert count(server) == 120
    run(recipe(server.url, seed_characters=20, **scored))
    assert count(server) > 160


def test_results_depend_neither_on_the_order_of_answers_nor_on_the_number_of_workers(tmp_path, recipe, scored, server):
    def outputs(name, concurrency, workers):
        server.latency, server.together = 0.01, concurrency
        config = recipe(
            server.url,
            output=str(tmp_path / name),
            workers=workers,
            server={"concurrency": concurrency},
            **scored,
        )
        _, documents, dropped, _ = run(config)
        for entry in (*documents, *dropped):
            entry["synthesis"].pop("time")
        return documents, dropped

    assert outputs("one", 1, 1) == outputs("many", 16, 2)
    assert server.most_at_once == 16


def test_seeds_are_chosen_by_their_ids_and_fewer_are_among_more(recipe, server):
    def seeds(most):
        _, documents, _, summary = run(recipe(server.url, max_seeds=most))
        assert summary["seeds"] == min(most, 40)
        return {entry["synthesis"]["seed"]["id"] for entry in documents}

    assert seeds(5) < seeds(12) < seeds(100) and count(server) == 40


def test_prepared_shards_are_seeds(recipe, server, tree, texts, prepare):
    directory = prepare().directories["web"]
    sources = {"old": {"kind": "shards", "path": str(directory)}}
    _, documents, _, summary = run(recipe(server.url, ingest={"sources": sources}, max_seeds=10))
    assert summary["seeds"] == summary["kept"] == 10 and count(server) == 10
    assert all(entry["id"].startswith("old/web/") and entry["id"].endswith(".txt#qa") for entry in documents)


def test_seeds_without_a_prompt_in_their_language_are_dropped(tmp_path, recipe, server):
    prompts = {"zh": {"file": str(tmp_path / "question.txt"), "languages": ["zh"]}}
    _, documents, dropped, _ = run(recipe(server.url, generate={"prompts": prompts}))
    assert {entry["language"] for entry in documents} == {"zh-CN"} and len(documents) == 10
    assert {(entry["reason"], entry["detail"]) for entry in dropped} == {("answer: no prompt", "language en")}


def test_documents_that_repeat_each_other_or_the_prompt_are_dropped(recipe, texts, server):
    config = recipe(server.url, answer={}, text="{answer}", filter={"unique": "{answer}", "max_copied": 0.5})
    special = {3: "answer NUMBER 2!", 5: texts[5]}
    with Journal(config.directory) as journal:
        for number in range(40):
            seed = seed_of(number, "zh-CN" if number % 4 == 0 else "en", text=texts[number])
            key = Recipe(config).follow(seed, journal.answer).key
            answer = said(special.get(number, f"Answer number {number}."))
            journal.write([("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (key, *astuple(answer)))])
    _, documents, dropped, _ = run(config)
    assert count(server) == 0 and len(documents) == 38
    assert {(entry["id"], entry["reason"]) for entry in dropped} == {
        ("web/s3#qa", "duplicate"),
        ("web/s5#qa", "copied from the prompt"),
    }


def test_a_pipeline_reads_the_documents_with_where_they_come_from(tmp_path, recipe, scored, server):
    config = recipe(server.url, **scored)
    _, documents, *_ = run(config)

    def rows(folder, path, **source):
        source = SourceConfig(kind="synthetic", path=str(path), **source)
        tasks = make_tasks("made", source, IngestConfig(sources={"made": source}))
        records = [task.function(Folder(folder), task.key, *task.arguments) for task in tasks]
        return [
            row
            for r in records
            for name in r.files
            for row in pq.read_table(Folder(folder).file(r.key, name)).to_pylist()
        ]

    found = rows(tmp_path / "work", config.directory)
    assert [row["text"] for row in found] == [entry["text"] for entry in documents]
    assert [row["id"] for row in found] == [f"made/{entry['id']}" for entry in documents]
    assert {row["language"] for row in found} == {"en", "zh-CN"}
    made = documents[0]["synthesis"]
    step = f"synthetic: template qa of seed {made['seed']['id']} by made-up, score {made['score']['score']}"
    assert dict(found[0]["steps"])["ingest"] == f"documents-00000.jsonl:1; {step}"
    (tmp_path / "documents-1.jsonl").write_text('{"id": "a", "text": "b"}\n')
    with pytest.raises(DataError, match="documents-1.jsonl:1: not JSON.*kind jsonl"):
        rows(tmp_path / "work", tmp_path / "documents-1.jsonl")


def test_files_of_documents_are_cut_and_those_that_are_no_more_go(recipe, server, monkeypatch):
    monkeypatch.setattr("data_prep.synthesize.output.FILE_BYTES", 5000)
    config = recipe(server.url)
    _, many, *_ = run(config)
    names = sorted(path.name for path in config.directory.glob("documents-*"))
    assert len(names) > 2 and names[-1] == f"documents-{len(names) - 1:05d}.jsonl"
    _, few, *_ = run(recipe(server.url, max_seeds=2))
    assert [path.name for path in config.directory.glob("documents-*")] == ["documents-00000.jsonl"]
    assert len(few) == 2 and all(entry in many for entry in few)


def test_the_key_is_sent_and_told_nowhere(recipe, monkeypatch):
    secret = "sk-do-not-tell-me"
    config = recipe(server={"api_key_env": "MADE_UP_KEY"})
    monkeypatch.delenv("MADE_UP_KEY", raising=False)
    with pytest.raises(ConfigError, match="variable MADE_UP_KEY is not set"):
        run(config)
    monkeypatch.setenv("MADE_UP_KEY", secret)
    with AnswerServer(latency=0, key=secret) as server:
        printed, *_ = run(recipe(server.url, server={"api_key_env": "MADE_UP_KEY"}))
        assert server.authorizations == {f"Bearer {secret}"} and count(server) == 40
    written = b"".join(path.read_bytes() for path in config.directory.rglob("*") if path.is_file())
    assert secret not in printed and secret.encode() not in written
    with AnswerServer(latency=0, key="another") as server:
        with pytest.raises(ConfigError, match=r"the key in MADE_UP_KEY is refused: status 401.*Bearer \*\*\*") as error:
            run(recipe(server.url, output=f"{config.output}2", server={"api_key_env": "MADE_UP_KEY"}))
        assert secret not in str(error.value) and len(server.entries) <= 16


def test_a_journal_is_held_by_one_run_and_a_damaged_one_is_named(recipe, server):
    config = recipe(server.url)
    with Journal(config.directory), pytest.raises(MaxlmError, match="journal.sqlite: another run writes it"):
        run(config)
    run(config)
    path = config.directory / "journal.sqlite"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="journal.sqlite: damaged"):
        run(config)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"server": {"url": "127.0.0.1:8000"}}, "server: url is"),
        ({"server": {"url": "http://me:secret@host/v1"}}, "server: url is 'http://host/v1'"),
        ({"max_cost": 1.0}, "max_cost needs prices"),
        ({"generate": {"prompts": {}}}, "generate.prompts"),
        ({"generate": {"prompts": {"a": {"file": "a"}}, "body": {"stream": True}}}, "body has 'stream'"),
        ({"answer": {"schemas": {}}}, "unknown key 'answer.schemas'"),
    ],
)
def test_settings_that_cannot_work_are_refused(recipe, sections, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**sections)


def test_the_schema_describes_every_field():
    schema = json_schema(Synthesis)
    for definition in (schema, *schema["$defs"].values()):
        for name, field in definition["properties"].items():
            assert "description" in field, name
