"""A curriculum by perplexity: a model is trained, documents are ordered by it, and the trainer reads them so."""

import io
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_prep.config import QualityModel
from data_prep.pipeline import train_model
from maxlm.config import SourceConfig, validate
from maxlm.data.loader import Batches
from maxlm.data.pedigree import examples_of, fragments
from maxlm.data.schedule import Layout, Stage
from maxlm.data.shards import Shards, documents_name
from maxlm.data.sources import Source
from maxlm.data.tokenizer import Tokenizer

NOUNS, VERBS = ["cat", "dog", "horse", "hen", "fox", "owl"], ["sees", "hears", "follows", "likes"]
PLACES = ["barn", "hill", "wood"]
BUCKETS, SEQ_LEN, BATCH = 4, 64, 4


def document(generator: random.Random, disorder: float) -> str:
    """Sentences of which a share of the words has changed places: the larger, the harder to predict."""
    words = []
    for _ in range(8):
        subject, verb, other, place = map(generator.choice, (NOUNS, VERBS, NOUNS, PLACES))
        words += f"the {subject} {verb} the {other} behind the {place} , and nobody minds .".split()
    places = [place for place in range(len(words)) if generator.random() < disorder]
    moved = generator.sample(places, len(places))
    for place, source in zip(places, [words[place] for place in moved], strict=True):
        words[place] = source
    return " ".join(words)


def write(path, disorders, seed):
    generator = random.Random(seed)
    lines = ({"id": str(i), "text": document(generator, disorder)} for i, disorder in enumerate(disorders))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "jsonl", "path": str(path), "id_field": "id", "language": "en"}


@pytest.fixture
def ordered(tmp_path, prepare):
    """Shards in the order of perplexity by a model of orderly documents."""
    model = {"name": "orderly", "output": str(tmp_path / "models"), "workers": 1}
    own = {"ingest": {"sources": {"orderly": write(tmp_path / "own.jsonl", [0.0] * 150, 0)}}}
    config = validate(model | own | {"perplexity": {"held_out": 0.1}}, QualityModel, "test")
    directory = train_model(config, Console(file=io.StringIO()))
    disorders = np.random.default_rng(0).permutation(np.linspace(0, 0.9, 200)).tolist()
    prepared = prepare(
        ingest={"sources": {"web": write(tmp_path / "web.jsonl", disorders, 1)}, "shard_bytes": 20_000},
        quality={"models": {"ppl": {"path": str(directory)}}},
        shards={"shard_tokens": 6000, "order": {"by": "ppl_rank", "buckets": BUCKETS}},
    )
    return Shards(prepared.directories["web"])


def test_the_trainer_reads_from_easy_to_hard(ordered, tmp_path):
    lines = map(json.loads, (tmp_path / "web.jsonl").read_text().splitlines())
    texts = {f"web/{line['id']}": line["text"] for line in lines}
    tokenizer = Tokenizer(ordered.directory / "tokenizer", ordered.manifest.tokenizer)
    tables = [
        pq.read_table(ordered.directory / documents_name(i)).to_pylist() for i in range(len(ordered.manifest.shards))
    ]
    assert len(tables) > 3 and sum(map(len, tables)) == 200

    def read(order):
        """The documents of every step of an epoch, as `inspect --step` finds them; the batches have their text."""
        sources = {"web": Source("web", ordered, SourceConfig(path="", order=order), seed=3)}
        steps = sources["web"].order(SEQ_LEN).windows // BATCH
        stage = Stage(steps * BATCH * SEQ_LEN, {"web": 1.0}, BATCH, SEQ_LEN)
        schedule = Layout([stage], sources).begin()
        batches = Batches(sources, schedule, rows={BATCH: range(BATCH)}, num_steps=steps)
        found = []
        for step in range(steps):
            examples = examples_of(sources, schedule, step, range(BATCH))
            found.append([])
            for example in examples:
                tokens = batches[step]["tokens"][example.row]
                for piece in fragments(sources["web"], SEQ_LEN, example.block, example.window):
                    found[-1].append(tables[piece.shard][piece.row])
                    text = tokenizer.decode(tokens[piece.slot : piece.slot + piece.length])
                    assert text in texts[found[-1][-1]["id"]]
        return found

    steps = read("as_written")
    assert len(steps) > 20
    buckets = [int(row["ppl_rank"] * BUCKETS) for step in steps for row in step]
    assert buckets == sorted(buckets) and set(buckets) == set(range(BUCKETS))
    medians = [np.median([row["ppl"] for row in step]) for step in steps]
    quarters = [np.mean(quarter) for quarter in np.array_split(medians, BUCKETS)]
    assert quarters == sorted(quarters) and quarters[-1] > 2 * quarters[0]
    first, last = ({row["id"] for row in steps[place]} for place in (0, -1))
    ranks = {row["id"]: row["ppl_rank"] for table in tables for row in table}
    assert max(ranks[one] for one in first) < 1 / BUCKETS and min(ranks[one] for one in last) >= 1 - 1 / BUCKETS
    shuffled = [int(row["ppl_rank"] * BUCKETS) for step in read("shuffled") for row in step]
    assert shuffled != sorted(shuffled) and set(shuffled[: len(shuffled) // 4]) == set(range(BUCKETS))
