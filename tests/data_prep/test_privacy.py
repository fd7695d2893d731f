"""Personal data and secrets: what is masked, what is dropped, and that nothing of a masked value is left."""

import io
import json

import pyarrow.parquet as pq
import pytest
import yaml
from privacy_forms import PLACES
from privacy_sample import TYPES, Values
from rich.console import Console

from data_prep.config.privacy import PrivacyConfig
from data_prep.documents import read
from data_prep.engine import Processes
from data_prep.ingest import stage as ingest
from data_prep.privacy import stage
from data_prep.stages import Run
from maxlm.config import validate
from maxlm.data.shards import document_hash
from maxlm.errors import ConfigError, DataError, MaxlmError

MAIL, OTHER = "ket.marnor@fensolket.example", "vexpel@cro-lum.example"
PHONE, ADDRESS = "13812345678", "93.184.216.34"
KEY = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
DOCUMENTS = {
    "both": f"Write to {MAIL} or {OTHER}, 电话：{PHONE}。\nAgain: {MAIL}",
    "address": f"from {ADDRESS} and 192.168.1.7, version 93.184.216.99",
    "secret": f"token = {KEY}",
    "plain": "Nothing is here, 3.14159 times.",
}


@pytest.fixture
def run(tmp_path, pipeline):
    """Ingest of documents by id and the stage; the rows that stay by id without the source, and the run."""

    def call(documents=DOCUMENTS, workers=1, source=None, fields=(), **privacy):
        path = tmp_path / "raw.jsonl"
        lines = [{"id": key, "text": text} for key, text in documents.items()]
        for line, more in zip(lines, fields, strict=False):
            line |= more
        content = "".join(json.dumps(line) + "\n" for line in lines)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        web = {"kind": "jsonl", "path": str(path), "id_field": "id"} | (source or {})
        config = pipeline(ingest={"sources": {"web": web}, "shard_bytes": 150}, privacy=privacy)
        stage.check(config)
        with Processes(workers) as pool:
            this = Run(config, Console(file=io.StringIO(), width=200), pool)
            parts = stage.run(this, ingest.run(this))
        names = ("id", "id_hash", "text", "bytes", "url", "language", "steps", "privacy")
        rows = [row for part in parts for row in read(part, names).to_pylist()]
        assert sum(part.documents for part in parts) == len(rows)
        assert sum(part.bytes for part in parts) == sum(len(row["text"].encode()) for row in rows)
        assert all(row["bytes"] == len(row["text"].encode()) for row in rows)
        return {row["id"].removeprefix("web/"): row for row in rows}, this

    return call


def printed(this):
    return this.console.file.getvalue()


def test_values_are_masked_by_type_and_their_places_are_kept(run):
    rows, this = run()
    assert rows["both"]["text"] == "Write to [EMAIL] or [EMAIL], 电话：[PHONE]。\nAgain: [EMAIL]"
    assert rows["address"]["text"] == "from [IPV4] and 192.168.1.7, version 93.184.216.99"
    assert rows["secret"]["text"] == "token = [SECRET]"
    assert rows["plain"]["text"] == DOCUMENTS["plain"] and rows["plain"]["privacy"] == []
    for row in rows.values():
        for span in row["privacy"]:
            assert row["text"].encode()[span["start"] : span["stop"]].decode() == f"[{span['type'].upper()}]"
    assert [span["type"] for span in rows["both"]["privacy"]] == ["email", "email", "phone", "email"]
    notes = {key: dict(row["steps"]).get("privacy") for key, row in rows.items()}
    assert notes == {"both": "3 email, 1 phone", "address": "1 ipv4", "secret": "1 secret", "plain": None}
    changed = this.funnel[-1].changed
    assert {name: amount.documents for name, amount in changed.items()} == {
        "email masked": 1,
        "phone masked": 1,
        "ipv4 masked": 1,
        "secret masked": 1,
    }
    assert changed["secret masked"].bytes == len(KEY) - len("[SECRET]")
    lost = sum(amount.bytes for amount in changed.values())
    assert lost == this.funnel[-1].before.bytes - this.funnel[-1].after.bytes
    assert "masked 3 email, 1 ipv4, 1 phone, 1 secret in text" in printed(this)


def test_equal_values_share_a_number_if_asked(run):
    rows, _ = run(placeholder="<|{type}_{number}|>")
    assert rows["both"]["text"].startswith("Write to <|email_1|> or <|email_2|>, 电话：<|phone_1|>。")
    assert rows["both"]["text"].endswith("Again: <|email_1|>")


def test_documents_are_dropped_by_type_and_by_number(run):
    rows, this = run(secret="drop", phone="off", max_spans=2)
    assert set(rows) == {"address", "plain"}
    assert {name: amount.documents for name, amount in this.funnel[-1].dropped.items()} == {
        "secret found": 1,
        "more than max_spans values": 1,
    }
    rows, _ = run(phone="off", max_spans=3)
    assert PHONE in rows["both"]["text"] and MAIL not in rows["both"]["text"]


def test_addresses_that_are_left_can_be_masked(run):
    rows, _ = run(leave_addresses=["version"])
    assert rows["address"]["text"] == "from [IPV4] and [IPV4], version 93.184.216.99"
    rows, _ = run(leave_addresses=[])
    assert rows["address"]["text"] == "from [IPV4] and [IPV4], version [IPV4]"
    documents = {"six": "fe80::1ff:fe23:4567:890a, 2001:db8::8a2e:370:7334, ::1 and 2a02:4d3b:8d2f::8c35"}
    assert run(documents)[0]["six"]["text"].endswith("::1 and [IPV6]")
    assert run(documents, leave_addresses=[])[0]["six"]["text"] == "[IPV6], [IPV6], [IPV6] and [IPV6]"


def test_settings_limit_it_to_languages_and_sources(run):
    fields = [{"lang": "en"}, {"lang": "zh"}, {"lang": "python"}, {"lang": "en"}]
    rows, _ = run(source={"language_field": "lang"}, fields=fields, languages=["zh", "python"])
    assert MAIL in rows["both"]["text"] and ADDRESS not in rows["address"]["text"] and KEY not in rows["secret"]["text"]
    rows, _ = run(sources=["web"])
    assert MAIL not in rows["both"]["text"]
    with pytest.raises(ConfigError, match="no source is called 'books'; there are web"):
        run(sources=["books"])


def test_other_sources_are_left_as_they_are(select):
    sources = {"mail": {"a": MAIL}, "books": {"a": MAIL}}
    found = select("privacy", sources, privacy={"sources": ["mail"]})
    assert found.texts == {"mail/a": "[EMAIL]", "books/a": MAIL}


def test_a_value_that_words_gave_away_is_masked_everywhere(run):
    number, password = "6465550123", "kN7pQz3wL9"
    text = f'Phone: {number}. Order {number}, x{number[1:]}.\npassword = "{password}"\nlogin({password}); {password}8'
    rows, _ = run(
        {number: text}, fields=[{"url": f"http://a.example/{number}?p={password}"}], source={"url_field": "url"}
    )
    ((key, row),) = rows.items()
    assert row["text"] == (
        f'Phone: [PHONE]. Order [PHONE], x{number[1:]}.\npassword = "[SECRET]"\nlogin([SECRET]); {password}8'
    )
    assert row["url"] == "http://a.example/[PHONE]?p=[SECRET]"
    assert key == f"hidden-{document_hash(f'web/{number}'):016x}"


def test_ids_addresses_and_steps_are_masked(run):
    fields = [{"url": f"https://a.example/?to={MAIL.replace('@', '%40')}"}, {"url": "http://b.example"}]
    documents = {f"to {OTHER}": "Plain text.", "b": "More of it."}
    rows, this = run(documents, source={"url_field": "url"}, fields=fields)
    (changed,) = rows.keys() - {"b"}
    row = rows[changed]
    assert changed == f"hidden-{document_hash(f'web/to {OTHER}'):016x}"
    assert row["id_hash"] == document_hash(row["id"]) and rows["b"]["id_hash"] == document_hash("web/b")
    assert row["url"] == "https://a.example/?to=[EMAIL]" and row["text"] == "Plain text."
    assert dict(row["steps"])["privacy"] == "id masked, url masked"
    assert this.funnel[-1].changed["in ids and addresses"].documents == 1
    assert rows["b"]["url"] == "http://b.example"


def test_a_changed_action_reads_no_text_again(run, tmp_path):
    run()
    work = tmp_path / "out" / ".work" / "test"
    before = {path: path.stat().st_mtime_ns for path in (work / stage.SPANS).rglob("*.parquet")}
    rows, this = run(email="drop", max_spans=7, placeholder="({type})", leave_addresses=["global"])
    assert {path: path.stat().st_mtime_ns for path in (work / stage.SPANS).rglob("*.parquet")} == before
    assert "both" not in rows and rows["secret"]["text"] == "token = (secret)"
    run(phone_regions=["GB"])
    assert len(list((work / stage.SPANS).rglob("*.parquet"))) == 2 * len(before)


def test_a_setting_without_effect_redoes_nothing_that_follows(run):
    keys = []
    for options in ({}, {"max_spans": 9}, {"email": "drop"}):
        _, this = run(**options)
        parts = stage.run(this, ingest.run(this))
        keys.append({part.name: part.key for part in parts})
    assert keys[0] == keys[1] != keys[2]


def test_a_stage_that_matches_nothing_says_so(run):
    _, this = run({"a": "plain"})
    assert "privacy: nothing to mask or drop in 1 documents" in printed(this)
    with pytest.raises(DataError, match="privacy.expect_matches is set"):
        run({"a": "plain"}, expect_matches=True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"placeholder": "{value}"}, "other braces than {type}, {TYPE} and {number}"),
        ({"placeholder": "{"}, "other braces"),
        ({"email": "hide"}, "'mask', 'drop' or 'off'"),
        ({name: "off" for name in TYPES}, "every type is off"),
        ({"phone_regions": ["China"]}, "phone_regions"),
        ({"max_spans": 0}, "max_spans"),
    ],
)
def test_bad_settings_are_one_line(section, message):
    with pytest.raises(ConfigError, match=message):
        validate(section, PrivacyConfig, "test")


def test_off_is_what_yaml_makes_of_it():
    config = validate(yaml.safe_load("{email: off, phone: drop}"), PrivacyConfig, "test")
    assert (config.email, config.phone, config.card) == ("off", "drop", "mask")


def test_regions_and_libraries_are_checked_first(run, monkeypatch):
    with pytest.raises(ConfigError, match="'XX' has no numbering plan"):
        run(phone_regions=["XX"])
    monkeypatch.setattr(stage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MaxlmError, match="'re2' is not installed.*pip install"):
        run()


def test_results_do_not_depend_on_the_workers(tmp_path, run, contents):
    work, results = tmp_path / "out" / ".work" / "test", []
    for workers in (1, 2):
        rows, this = run(workers=workers)
        results.append((rows, this.funnel, {name: contents(work / name) for name in (stage.STAGE, stage.SPANS)}))
        for name in (stage.STAGE, stage.SPANS):
            (work / name).rename(tmp_path / f"{name}{workers}")
    assert results[0] == results[1] and len(results[0][2][stage.STAGE]) > 2


def values_of_every_type():
    values = Values(7)
    makers = [name for name in PLACES if name != "pem"]
    return [getattr(values, makers[number % len(makers)])() for number in range(48)]


def test_nothing_of_a_masked_value_is_in_any_output(tmp_path, prepare):
    """Tokens decoded, ids, addresses, steps, names of files, the funnel, and what is printed and published."""
    values = values_of_every_type()
    mails = [value for value in values if "@" in value][:4]
    folder = tmp_path / "mails"
    folder.mkdir()
    lines = [
        {"id": f"{n} {values[n]}", "url": f"http://a.example/{values[n]}", "text": f'{n}: password = "{values[n]}";'}
        for n in range(len(values))
    ]
    question = "what is the name of the person who wrote this line about the long road to the sea and back again"
    for mail in mails:
        (folder / f"{mail}.txt").write_text(f"{mail} said: {question} {mail} . " + "and more words here " * 40)
    (tmp_path / "benchmark.txt").write_text(question)
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = {
        "lines": {"kind": "jsonl", "path": str(tmp_path / "lines.jsonl"), "id_field": "id", "url_field": "url"},
        "mails": {"kind": "tree", "path": str(folder)},
    }
    prepared = prepare(
        ingest={"sources": sources},
        decontaminate={"files": [{"name": "questions", "path": str(tmp_path / "benchmark.txt")}], "margin": 0},
        validation={"fraction": 0.2},
        privacy={},
    )
    rows = [row for name in prepared.directories for row in prepared.documents(name)]
    assert len(rows) == len(values) + len(mails)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "/.work/" not in str(path)]
    names = " ".join(str(path.relative_to(tmp_path)) for path in files)
    tables = [str(pq.read_table(path).to_pylist()) for path in files if path.suffix == ".parquet"]
    work = tmp_path / "out" / ".work" / "test"
    places = {
        "documents": json.dumps(rows, ensure_ascii=False, default=str),
        "files": b"\n".join(path.read_bytes() for path in files).decode("utf-8", "replace"),
        "tables": " ".join(tables),
        "names of files": names,
        "funnel": (work / "funnel.json").read_text(),
        "printed": prepared.printed,
    }
    assert '"mails/hidden-' in places["files"], "the report on benchmarks names documents by their ids"
    left = [(value, place) for value in {*values, *mails} for place, text in places.items() if value in text]
    assert not left
