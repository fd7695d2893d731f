"""A document's history: what every stage did to it, and where it is."""

import json

import pytest
import yaml
from report_corpus import MENU, QUESTION, make_config, page_text, prepare

from data_prep.report.history import find_history, print_history
from maxlm.data.shards import Shards
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = make_config(tmp_path_factory.mktemp("history"))
    prepare(made)
    return made


def history(config, document, source=None):
    (found,) = find_history(config, document, source)
    return found, {entry["stage"]: entry for entry in found["stages"]}


def test_a_document_that_is_kept_is_found_with_its_tokens(config):
    found, stages = history(config, "page2")
    assert found["id"] == "pages/page2" and found["kept"] and found["why_not"] is None
    assert (found["source"], found["read"]["from"], found["language"]) == ("pages", "pages.jsonl:3", None)
    assert stages["language-columns"]["columns"]["language"] == "en" and stages["fuzzy"]["columns"]["cluster_size"] == 1
    output = found["output"]
    shards = Shards(output["directory"])
    start, stop = shards.span(output["shard"], output["row"])
    assert stop - start == output["tokens"]
    tokenizer = Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)
    assert tokenizer.decode(shards.read(start, stop)) == found["text_after"] == page_text(2)
    assert found["text_before"] == f"{page_text(2)}\n{MENU}"


def test_edits_lead_from_the_text_before_to_the_text_after(config):
    found, stages = history(config, "asked")
    (edit,) = stages["decontaminate"]["edits"]
    before = found["text_before"].encode()
    assert stages["decontaminate"]["did"] == "changed" and QUESTION in edit["before"]
    assert before[edit["start"] : edit["stop"]].decode() == edit["before"]
    after = before[: edit["start"]] + edit["after"].encode() + before[edit["stop"] :]
    assert after.decode() == found["text_after"]


def test_a_document_that_was_dropped_says_why_by_whom_and_what_stayed(config):
    found, stages = history(config, "short")
    assert not found["kept"] and found["output"] is None and list(stages)[-1] == "rules"
    assert found["why_not"] == "dropped by rules: gopher: too few words"
    assert stages["rules"]["values"] == [{"name": "gopher.words", "value": 5.0, "least": 20}]
    found, stages = history(config, "page3")
    assert stages["exact"]["copy"] == {"id": "pages/copy", "source": "pages"}
    assert history(config, "copy")[1]["exact"]["note"] == "2 copies"


def test_a_source_tells_documents_of_one_id_apart(config):
    assert {one["source"] for one in find_history(config, "page1")} == {"pages", "notes"}
    assert history(config, "page1", "notes")[0]["text_before"] == "Another one with few words."
    assert history(config, "notes/page1")[0]["id"] == "notes/page1"
    with pytest.raises(DataError, match="there is no source 'note'; the pipeline has pages, notes"):
        find_history(config, "page1", "note")


def test_a_pipeline_that_is_half_done_says_what_it_waits_for(tmp_path):
    half = make_config(tmp_path)
    prepare(half, until="rules")
    found, _ = history(half, "page2")
    assert found["kept"] and found["why_not"] == "the pipeline is not done: it waits for fuzzy"


def test_what_is_printed_is_for_people(config, capsys):
    print_history(find_history(config, '"><img src=x onerror=alert(1)>'))
    nasty = capsys.readouterr().out
    assert "\\x202egnp.exe\\x00\\x1b[31m" in nasty and "\x1b" not in nasty and "\u202e" not in nasty
    print_history(find_history(config, "page2"))
    text = capsys.readouterr().out
    assert f"'\\n{MENU}'" in text and "in no output" not in text and "tokens" in text


def test_the_command_prints_json_and_names_the_nearest_ids(config, command, tmp_path):
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    done = command("inspect", file, "--document", "page2", "--json")
    assert json.loads(done.stdout) == json.loads(json.dumps(find_history(config, "page2")))
    absent = command("inspect", file, "--document", "page99")
    assert absent.returncode == 3 and absent.stdout == "" and absent.stderr.count("\n") == 1
    assert "error: the pipeline test has no document 'page99'; near it are 'pages/page9'" in absent.stderr
