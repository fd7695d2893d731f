"""Near duplicates: which documents stay, what is recorded, and the same result however the work is divided."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_copies import edited, plant

from data_prep.dedup import components, tables
from data_prep.engine import queries
from data_prep.manifest import Folder
from maxlm.errors import ConfigError, DataError

NEAR = {"exact": False, "fuzzy": {}}


def text_of(number, length=200):
    generator = random.Random(number)
    return " ".join(f"{generator.choice('abcdefgh')}{generator.randrange(500)}" for _ in range(length))


def source(path, texts, **fields):
    """A source of texts by id."""
    with open(path, "w") as file:
        for key, text in texts.items():
            file.write(json.dumps({"id": key, "text": text}) + "\n")
    return {"kind": "jsonl", "path": str(path), "id_field": "id"} | fields


def rows_of(prepared, *names):
    return {row["id"]: row for name in names for row in prepared.documents(name)}


def reasons(work):
    (row,) = [row for row in json.loads((work / "funnel.json").read_text()) if row["stage"] == "fuzzy"]
    return {reason: amount["documents"] for reason, amount in row["dropped"].items()}


def test_the_best_of_near_copies_stays_by_source_then_size_then_id(tmp_path, prepare):
    one, two, three = (text_of(number) for number in range(3))
    sources = {
        "zzz": source(tmp_path / "z.jsonl", {"9": one, "8": one + " longer", "7": two, "1": text_of(9)}),
        "aaa": source(tmp_path / "a.jsonl", {"1": one + " and much longer", "3": three, "2": three[:-1] + "x"}),
    }
    prepared = prepare(ingest={"sources": sources}, dedup=NEAR)
    rows = rows_of(prepared, "zzz", "aaa")
    assert sorted(rows) == ["aaa/2", "zzz/1", "zzz/7", "zzz/8"]
    steps = {key: dict(row["steps"]).get("fuzzy") for key, row in rows.items()}
    assert steps == {"aaa/2": "cluster of 2", "zzz/8": "cluster of 3", "zzz/7": None, "zzz/1": None}
    assert {key: row["cluster_size"] for key, row in rows.items()} == {"aaa/2": 2, "zzz/8": 3, "zzz/7": 1, "zzz/1": 1}
    found = reasons(tmp_path / "out" / ".work" / "test")
    assert found == {"near duplicate": 2, "near duplicate of another source": 1}


def test_normalised_copies_are_found_without_and_with_fuzzy(tmp_path, prepare):
    one = "国家图书馆 keeps Many Books."
    texts = {
        "1": one,
        "2": "國家圖書館-KEEPS MANY   (books)",
        "3": "国家图书馆 keeps many book",
        "4": "...",
        "5": "!!!",
    }
    sources = {"web": source(tmp_path / "z.jsonl", texts)}
    for fuzzy in (None, {"buckets": 2}):
        prepared = prepare(ingest={"sources": sources}, dedup={"normalised": True, "fuzzy": fuzzy})
        assert sorted(rows_of(prepared, "web")) == ["web/2", "web/3", "web/4", "web/5"]
        assert reasons(tmp_path / "out" / ".work" / "test") == {"duplicate but for case and punctuation": 1}


def test_a_chain_of_near_copies_is_one_cluster(tmp_path, prepare):
    """The ends of the chain share nothing: what each of its neighbours shares connects them."""
    words = text_of(0, 600).split()
    chain = {f"{step:02d}": " ".join(words[20 * step : 20 * step + 200]) for step in range(20)}
    sources = {"web": source(tmp_path / "z.jsonl", chain | {"other": text_of(1)})}
    prepared = prepare(ingest={"sources": sources}, dedup={"fuzzy": {"buckets": 64, "rows": 4}})
    rows = rows_of(prepared, "web")
    assert len(rows) == 2 and {row["cluster_size"] for row in rows.values()} == {1, 20}


@pytest.mark.parametrize("options", [{}, {"unit": "characters"}])
def test_planted_copies_are_found_and_nothing_else(tmp_path, prepare, options):
    originals = [text_of(number) for number in range(200)]
    texts, pairs = plant(originals, 0.3, 0)
    sources = {"web": source(tmp_path / "z.jsonl", {f"{i:04d}": text for i, text in enumerate(texts)})}
    prepared = prepare(ingest={"sources": sources, "shard_bytes": 60000}, dedup={"fuzzy": options})
    rows = rows_of(prepared, "web")
    kept = {int(key.split("/")[1]) for key in rows}
    assert all((one in kept) + (other in kept) == 1 for one, other, similarity in pairs if similarity > 0.85)
    assert len(kept) >= 200 and set(range(200)) - kept <= {one for one, *_ in pairs}


def test_other_shingles_for_a_language(tmp_path, prepare):
    """Texts of other words that share their characters but for spaces: copies by characters, not by words."""
    one = text_of(0).replace(" ", "")
    pieces = [" ".join(one[start : start + width] for start in range(0, len(one), width)) for width in (7, 11)]
    for language, count in (("xx", 1), ("en", 2)):
        path = tmp_path / f"{language}.jsonl"
        sources = {"web": source(path, dict(enumerate(map(str, pieces))), language=language)}
        dedup = {"fuzzy": {"by_language": {"xx": {"unit": "characters", "ngram": 9}}}}
        assert len(rows_of(prepare(ingest={"sources": sources}, dedup=dedup), "web")) == count


def test_bytes_do_not_depend_on_workers_shards_of_work_or_ranges(tmp_path, prepare, contents, monkeypatch):
    texts, _ = plant([text_of(number) for number in range(100)], 0.5, 0)
    texts += texts[:20]
    generator = random.Random(0)
    for number in range(20):
        texts.append(edited(texts[number], 0.01, generator))
    documents = {f"{i:04d}": text for i, text in enumerate(texts)}
    halves = [dict(list(documents.items())[start::2]) for start in range(2)]
    sources = {name: source(tmp_path / name, half) for name, half in zip(("b", "a"), halves, strict=True)}
    sections = {"ingest": {"sources": sources, "shard_bytes": 40000}, "dedup": {"normalised": True, "fuzzy": {}}}
    clean = prepare(**sections)
    expected = contents(tmp_path / "out")
    assert sum(len(clean.documents(name)) for name in ("a", "b")) < 110
    prepare(**sections, workers=2, work_dir=str(tmp_path / "workers"))
    assert contents(tmp_path / "out") == expected
    monkeypatch.setattr(queries, "RANGE_ROWS", 150)
    monkeypatch.setattr("data_prep.dedup.copies.MEMBER_ROWS", 20)
    monkeypatch.setattr("data_prep.dedup.copies.TOGETHER", 2)
    monkeypatch.setattr("data_prep.dedup.tables.PIECE_ROWS", 100)
    monkeypatch.setattr(components.connect, "__defaults__", (0,))
    prepare(**sections, work_dir=str(tmp_path / "ranges"))
    assert contents(tmp_path / "out") == expected
    made = tmp_path / "ranges" / "fuzzy"
    assert all(len(list(made.rglob(name))) > 1 for name in ("groups-*.npy", "found-*.npy", "table.parquet"))


def test_a_rerun_computes_no_signature_again(tmp_path, prepare):
    sources = {"web": source(tmp_path / "z.jsonl", {"1": text_of(0), "2": text_of(0) + " x", "3": text_of(1)})}
    first = prepare(ingest={"sources": sources}, dedup=NEAR)
    again = prepare(ingest={"sources": sources}, dedup=NEAR)
    assert again.manifests == first.manifests and " made" not in again.printed
    other = prepare(ingest={"sources": sources}, dedup=NEAR | {"fuzzy": {"seed": 1}})
    assert "fuzzy: 0 of 1 shards up to date, 1 made" in other.printed and "exact: query up to date" in other.printed


def test_a_stage_without_matches_says_so(tmp_path, prepare):
    sources = {"web": source(tmp_path / "z.jsonl", {"1": text_of(0), "2": text_of(1)})}
    assert "warning: fuzzy: no near duplicate among 2" in prepare(ingest={"sources": sources}, dedup=NEAR).printed
    with pytest.raises(DataError, match="dedup.fuzzy.expect_matches is set"):
        prepare(ingest={"sources": sources}, dedup=NEAR | {"fuzzy": {"expect_matches": True}})
    with pytest.raises(DataError, match="near duplicate.* dedup.expect_matches is set"):
        prepare(ingest={"sources": sources}, dedup={"exact": False, "normalised": True, "expect_matches": True})


def test_signatures_of_another_version_are_refused(prepare):
    with pytest.raises(ConfigError, match="dedup: signatures are .*, found 'older'"):
        prepare(dedup={"fuzzy": {}, "signatures": "older"})


def groups_of(pairs, tmp_path, here):
    """The groups of pairs that lie in three files, as rows (place, group) by place."""
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    for number, path in enumerate(paths):
        tables.save(path, np.array(pairs[number::3], np.uint64).reshape(-1, 2))
    folder = Folder(tmp_path / f"here-{here}")
    record = components.connect(folder, "key", paths, here)
    assert {path.name for path in folder.file("key", "x").parent.iterdir()} == {"record.json", *record.values["groups"]}
    files = [tables.load(folder.file("key", name)) for name in record.values["groups"]]
    assert all((np.diff(file[:, 0].astype(float)) > 0).all() for file in files)
    rows = np.concatenate(files)
    return rows[np.argsort(rows[:, 0])]


def by_search(pairs):
    """Each place's component, as the set of its places, by a plain search."""
    near = {}
    for one, other in pairs:
        near.setdefault(one, set()).add(other)
        near.setdefault(other, set()).add(one)
    found = {}
    for start in near:
        if start not in found:
            reached, queue = {start}, [start]
            while queue:
                new = near[queue.pop()] - reached
                reached |= new
                queue += new
            found |= dict.fromkeys(reached, frozenset(reached))
    return found


def check_groups(pairs, tmp_path):
    small, large = (groups_of(pairs, tmp_path, here) for here in (2**24, -1))
    assert (small == large).all() and small.shape == large.shape
    expected = by_search(pairs)
    assert small[:, 0].tolist() == sorted(expected)
    found = {}
    for place, group in small.tolist():
        found.setdefault(group, set()).add(place)
    assert set(map(frozenset, found.values())) == set(expected.values())


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), max_size=60),
    st.integers(1, 9),
)
def test_both_ways_of_connecting_give_the_components(tmp_path_factory, edges, stride):
    place = [(number % 3 << 32) + number * 7 for number in range(90)]
    pairs = {tuple(sorted((place[a], place[(a * stride + b + 1) % 60]))) for a, b in edges}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "RANGE_ROWS", 25)
        check_groups([pair for pair in sorted(pairs) if pair[0] != pair[1]], tmp_path_factory.mktemp("graph"))


@pytest.mark.parametrize("shape", ["chain", "shuffled chain", "star", "grid"])
def test_large_components_are_connected(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(queries, "RANGE_ROWS", 400)
    places = list(range(500))
    if shape == "shuffled chain":
        random.Random(0).shuffle(places)
    pairs = list(zip(places, places[1:], strict=False))
    if shape == "star":
        pairs = [(0, place) for place in places[1:]]
    if shape == "grid":
        pairs += [(one, one + 20) for one in places[:-20]]
    check_groups([tuple(sorted(pair)) for pair in pairs], tmp_path)


def test_connecting_goes_on_with_the_last_step(tmp_path, monkeypatch):
    pairs = [(place, place + 1) for place in range(300)]
    expected = groups_of(pairs, tmp_path / "whole", -1)
    saved, real = [], components._save_state

    def stop(directory, state):
        saved.append(state["step"])
        if len(saved) == 6:
            raise KeyboardInterrupt
        return real(directory, state)

    monkeypatch.setattr(components, "_save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        groups_of(pairs, tmp_path / "stopped", -1)
    assert (groups_of(pairs, tmp_path / "stopped", -1) == expected).all()
    assert saved[:7] == [0, 1, 2, 3, 4, 5, 5]


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from data_prep.dedup import components, copies, tables
from data_prep.engine import queries
from data_prep.manifest import Folder

folder, holders = Folder(Path(sys.argv[1])), int(sys.argv[2])
queries.RANGE_ROWS, components.connect.__defaults__ = 2**18, (0,)
generator = np.random.default_rng(0)
for stage, keys_each in (("exact", 1), ("fuzzy", 14)):
    files = []
    for number in range(holders):
        rows = np.repeat(np.arange(25000), keys_each)
        keys = generator.integers(0, 2**64, len(rows), np.uint64)
        # One of fifty documents shares all keys with the one before it.
        copy = np.flatnonzero(rows % 50 == 1)
        keys[copy] = keys[copy - keys_each]
        files.append((number, folder.file(f"{stage}{number}", "keys.npy")))
        tables.write_keys(files[-1][1], rows, key=keys, **({"more": keys} if stage == "exact" else {}))
    chunks = [files[start : start + 64] for start in range(0, holders, 64)]
    gathered = [tables.gather(folder, f"{stage}-table{number}", chunk) for number, chunk in enumerate(chunks)]
    found = copies.find_groups(folder, stage, *copies.located(folder, gathered))
    assert found.values["documents"] == holders * 1000, found
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_documents(tmp_path):
    """Ten times as many documents, 0.2 and 2 million, each with a hash and 14 bands."""
    root = Path(__file__).parents[2]
    peaks = []
    for holders in (8, 80):
        arguments = [sys.executable, "-c", MEASURE, str(tmp_path / str(holders)), str(holders)]
        done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    # The 28 million keys of the larger one are 450 MB as a table.
    assert peaks[1] < peaks[0] + 80, peaks
