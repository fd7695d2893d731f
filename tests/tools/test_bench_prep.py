"""The benchmark of preparation at toy size: what its rows say of real shards, never how long anything took."""

import json
import random
import sys
from pathlib import Path

import bench_prep
import bench_prep_inputs
import fetch_corpora
import pyarrow as pa
import pytest
from corpora_texts import Page

# Words that rules of quality let pass.
WORDS = (
    "the of and to that have with be in is for on are as at this by from or an was which all their can will one more "
    "water people between morning garden little river letter winter mountain evening music paper history number money "
    "question answer silver table window village country summer teacher student doctor writer reader painter builder"
)
CHARACTERS = "这是一本书的人在中国有很多学生和老师他们都喜欢读书写字不过"


def sentences(generator: random.Random, alphabet: list[str] | str, joint: str, stop: str) -> str:
    return "\n".join(
        " ".join(joint.join(generator.choices(alphabet, k=12)) + stop for _ in range(4))
        for _ in range(generator.randint(5, 9))
    )


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as fetch_corpora.py writes it, of made-up words."""
    out, generator = tmp_path_factory.mktemp("corpora"), random.Random(0)
    for name, alphabet, joint, stop in (("en/all", WORDS.split(), " ", "."), ("zh/modern", CHARACTERS, "", "。")):
        path = out / f"{name}.jsonl.zst"
        path.parent.mkdir()
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            for number in range(60):
                text = sentences(generator, alphabet, joint, stop)
                file.write(json.dumps({"id": f"{name}#{number}", "source": name, "text": text}).encode() + b"\n")
    pages = []
    for number in range(24):
        path = out / f"{number}.html"
        path.write_text(f"<html><body><p>{sentences(generator, WORDS.split(), ' ', '.')}</p></body></html>")
        pages.append(Page(path, f"http://a.example/{number}"))
    fetch_corpora.write_warc(out / "html.warc.gz", pages)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("row", bench_prep.ROWS)
def test_a_row_says_what_was_done(corpora, tmp_path, capsys, row):
    words = [str(corpora), "--rows", row, "--runs=1", "--datatrove-mb", "0.02", "0.02", "--vocab-size=300"]
    kept = tmp_path / "bench.json"
    made = bench_prep.main([*words, f"--work={tmp_path / 'work'}", f"--json={kept}"])
    assert json.loads(kept.read_text())["rows"] == made["rows"] and made["command"].endswith(str(kept))
    (result,) = made["rows"]
    ours = result["ours"]
    assert ours["mb_per_second"] == pytest.approx(ours["mb"] / ours["seconds"][0]) and len(ours["seconds"]) == 1
    assert f"| {bench_prep.ROWS[row][0]} | - | " in capsys.readouterr().out
    if row == "tokens":
        assert ours["compared_with_tokenizers"] == ours["same_ids"] > 5
    if row.startswith("rules"):
        assert 0 < ours["kept"] <= ours["documents"] == 60
    if row == "fuzzy":
        assert ours["recall"] == 1 and ours["planted"] <= ours["removed"] < ours["documents"]
    if row in ("extract", "whole"):
        assert ours["pages"] == 24 and ours["text_mb"] > 0
    if row == "whole":
        assert sum(ours["share_of_time"].values()) == pytest.approx(1, abs=0.02)
        assert {"ingest", "annotate", "fuzzy", "tokenize", "shuffle"} <= set(ours["share_of_time"])


def test_a_row_that_fails_is_an_error_with_its_reason(corpora, tmp_path):
    args = bench_prep.parse([str(corpora)])
    inputs = bench_prep_inputs.Inputs(tmp_path, {"work": str(tmp_path)}, [], [])
    with pytest.raises(SystemExit, match="none: bench_prep_ours.py failed with exit code 1; .*KeyError: 'none'"):
        bench_prep.measure(sys.executable, bench_prep.OURS, "none", inputs, args, [0])


def test_planted_copies_have_the_similarity_that_is_said():
    """Similarities spread from 0.5 to 1, and are those of the sets of shingles."""
    generator = random.Random(1)
    vocabulary = [f"w{number}" for number in range(500)]
    documents = [{"id": str(n), "text": " ".join(generator.choices(vocabulary, k=400))} for n in range(400)]
    planted, pairs = bench_prep_inputs.plant(documents)
    texts = {document["id"]: document["text"] for document in planted}
    assert len(pairs) == 400 // bench_prep_inputs.PLANTED_EVERY and len(planted) == len(documents) + len(pairs)
    for one, other, similarity in pairs:
        sets = [
            set(zip(*(words[k:] for k in range(5)), strict=False))
            for words in (texts[one].split(), texts[other].split())
        ]
        # The copy ends in a full stop, which is no word of ours but a word of split().
        assert similarity == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]), abs=0.01)
    found = sorted(similarity for *_, similarity in pairs)
    assert found[0] < 0.6 and found[-1] > 0.9 and 0.65 < found[len(found) // 2] < 0.85


def test_recall_counts_pairs_of_which_not_both_are_left():
    pairs = [("a", "a#near", 0.9), ("b", "b#near", 0.8), ("c", "c#near", 0.79), ("d", "d#near", 0.55)]
    found = bench_prep.recall({"left": ["a", "b", "b#near", "c", "d"]}, pairs)
    assert found == {"recall": 0.5, "found_at_0.5_to_0.6": 1.0, "planted": 2}


def test_a_warc_file_is_cut_between_its_records(corpora, tmp_path):
    from fastwarc.warc import ArchiveIterator

    def addresses(path: Path) -> list[str]:
        with open(path, "rb") as file:
            return [record.headers["WARC-Target-URI"] for record in ArchiveIterator(file)]

    every = addresses(corpora / "html.warc.gz")
    for pages, files in ((None, 5), (7, 2)):
        folder = bench_prep_inputs.cut(corpora / "html.warc.gz", tmp_path / str(files), pages, files)
        pieces = [addresses(path) for path in sorted(folder.iterdir())]
        assert pieces == [every[:pages][number::files] for number in range(files)]
