"""Perplexity of documents by an n-gram model of words: how much a text surprises who has read others like it.

A document is one sentence: line breaks are white space, so that wrapped and unwrapped text score alike, and its end is
one token more. A word that the model does not know has the probability that smoothing leaves for one unseen word
(<unk>), and the words behind it are predicted without it.

KenLM was not taken: its package is source that needs a compiler, has no program that trains, and takes words joined by
blanks. The model is trained by kneser_ney.py, which gives the numbers of its `lmplz`, and asked by
automaton.py, which gives those of its queries.

    model.json      kind "perplexity", version, settings, counts, and how well it predicts held-out documents
    vocabulary.npy, ngrams.npy, states.npy      the tables of automaton.py
    model.arpa      where it is asked for

Memory: of training as kneser_ney.py says; of scoring the tables, which processes of a machine share, and about 70 MB
for a batch of text.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.config.perplexity import PerplexityTraining
from data_prep.console import size
from data_prep.documents import SAMPLE_SALT, Part, chosen, held_out, iterate
from data_prep.engine import Task, advance
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.quality import automaton
from data_prep.quality.arpa import write_arpa
from data_prep.quality.automaton import KEYS
from data_prep.quality.kneser_ney import BEGIN, END, SPECIAL, Estimate, estimate, number
from data_prep.stages import Run
from data_prep.text import characters, words
from data_prep.text.texts import Texts
from maxlm.errors import DataError

KIND, VERSION = "perplexity", 1
STAGE, DESCRIPTION, ARPA = "perplexity", "model.json", "model.arpa"
TABLES = {name: f"{name}.npy" for name in automaton.KINDS}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class PerplexityModel:
    """A model that can be asked: how text becomes words, and the tables of the automaton."""

    splitter: str
    fold: bool
    tables: dict[str, np.ndarray]

    def score(self, texts: Texts) -> np.ndarray:
        """The perplexity per token of each document, its end among the tokens: float32 [documents]."""
        log_p, tokens, _ = self.measure(texts)
        return np.exp(-log_p / tokens).astype(np.float32)

    def measure(self, texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each document the natural logarithm of its probability (float64), tokens and unknown words (int64)."""
        measured = [(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for _, batch in texts.batches():
            hashes, bounds = hash_words(batch, self.splitter, self.fold)
            measured.append(automaton.measure(hashes, bounds, **self.tables))
        log_p, tokens, unknown = map(np.concatenate, zip(*measured, strict=True))
        return log_p, tokens, unknown


def hash_words(texts: Texts, splitter: str, fold: bool) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words, uint64 [words], and where those of each document begin, int64 [documents + 1]."""
    found = words.split(texts, splitter)
    return words.hashes(texts, found, characters.folded() if fold else None), found.bounds


def open_model(directory: Path) -> PerplexityModel:
    """The model in a directory; `DataError` where it is none, or one of another version."""
    path = directory / DESCRIPTION
    try:
        values = json.loads(path.read_bytes())
        found = {name: values[name] for name in ("kind", "version", "splitter", "fold")}
        tables = {name: _read(directory / file) for name, file in TABLES.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory}: no model of perplexity that can be read ({error}); train it again") from None
    expected = {"kind": KIND, "version": VERSION}
    if expected.items() <= found.items():
        expected["splitter"] = words.version(found["splitter"][0])
    for name, value in expected.items():
        if found[name] != value:
            raise DataError(f"{path}: {name} {found[name]}, expected {value}; train the model again")
    if flaw := automaton.flaw(tables):
        raise DataError(f"{directory}: the model is damaged ({flaw}); train it again")
    return PerplexityModel(found["splitter"][0], bool(found["fold"]), tables)


def _read(path: Path) -> np.ndarray:
    # An array, as compiled loops know no other; the pages stay those of the file.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def train(this: Run, parts: list[Part], config: PerplexityTraining) -> Record:
    """Train a model on the documents of a selection and say how well it predicts those that are held out.

    The record's files are the model's, its values what model.json has.
    """
    sources = config.sources or list(this.config.ingest.sources)
    parts = [part for part in parts if part.source in sources]
    settings = config.model_dump(mode="json", exclude={"sources"})
    key = make_key(STAGE, VERSION, settings, words.version(config.splitter), [part.key for part in parts])
    total = min(config.max_bytes, sum(part.bytes for part in parts))
    (record,) = this.tasks(STAGE, [Task(key, make_model, (parts, config), total)], "models")
    _report(this, record.values)
    return record


def _report(this: Run, values: dict) -> None:
    trained = values["trained"]
    counts = ", ".join(f"{count:,} {length}-grams" for length, count in enumerate(values["ngrams"], 1))
    this.say(STAGE, f"{counts}, trained on {trained['documents']:,} documents, {size(trained['bytes'])}")
    for source, one in values["evaluation"].items():
        this.say(
            STAGE,
            f"held out, {source}: {one['documents']:,} documents, perplexity {one['perplexity']:.1f}, of half of them "
            f"below {one['quantiles']['0.5']:.1f}; {one['unknown']:.2%} of the words are unknown",
        )
    if values["fallback"]:
        lengths = ", ".join(map(str, values["fallback"]))
        this.warn(f"{STAGE}: too little text to estimate the discounts of n-grams of length {lengths}; they are usual")


def make_model(folder: Folder, key: str, parts: Sequence[Part], config: PerplexityTraining) -> Record:
    """Write the files of a model; `values` is what model.json has."""
    tokens, names = [KEYS], dict[int, str]()
    trained, held = {"documents": 0, "bytes": 0}, dict[str, list[Texts]]()
    for source, texts, held_texts in _sample(parts, config):
        trained["documents"] += len(texts)
        trained["bytes"] += int(texts.bounds[-1] - texts.bounds[0])
        held.setdefault(source, []).append(held_texts)
        for _, batch in texts.batches():
            hashes, bounds = hash_words(batch, config.splitter, config.fold)
            tokens.append(with_ends(hashes, bounds))
            if config.arpa:
                names |= _names(batch, hashes, config)
    if not trained["documents"] or not any(map(len, sum(held.values(), []))):
        side = "held out" if trained["documents"] else "trained on"
        raise DataError(f"perplexity: no document is {side}; change perplexity.held_out, or give it more documents")
    numbers, hashes = by_frequency(np.concatenate(tokens))
    del tokens
    trained["tokens"] = len(numbers) - trained["documents"]
    vocabulary = min(len(hashes), SPECIAL + (config.vocabulary or len(hashes)))
    made = estimate(numbers, config.order, config.prune, vocabulary)
    tables = automaton.compiled(made, hashes[:vocabulary])
    for name, table in tables.items():
        with writing(folder.file(key, TABLES[name])) as temporary, open(temporary, "wb") as file:
            np.save(file, table, allow_pickle=False)
    if config.arpa:
        with writing(folder.file(key, ARPA)) as temporary:
            write_arpa(temporary, made.ngrams, [names[one] for one in hashes[SPECIAL:vocabulary].tolist()])
    model = PerplexityModel(config.splitter, config.fold, tables)
    values = _describe(config, made) | {"trained": trained, "evaluation": _evaluate(model, held), "made_by": key}
    with writing(folder.file(key, DESCRIPTION)) as temporary:
        temporary.write_text(json.dumps(values, indent=1))
    return folder.commit(key, [DESCRIPTION, *TABLES.values(), *([ARPA] if config.arpa else [])], values)


def _sample(parts: Sequence[Part], config: PerplexityTraining) -> Iterator[tuple[str, Texts, Texts]]:
    """Source, texts to train on and held-out ones, at most `max_bytes` of both together."""
    import pyarrow as pa

    left = config.max_bytes
    share = left / max(1, sum(part.bytes for part in parts))
    for part in parts:
        for table in iterate(part, [*dict.fromkeys(("id_hash", "text", "bytes", part.split_by))]):
            if share < 1:
                table = table.filter(pa.array(chosen(table["id_hash"].to_numpy(), SAMPLE_SALT, share)))
            total = np.cumsum(table["bytes"].to_numpy())
            table = table.slice(0, np.searchsorted(total, left, "right"))
            taken = int(total[table.num_rows - 1]) if table.num_rows else 0
            left -= taken
            held = held_out(table[part.split_by].to_numpy(), config.held_out)
            yield part.source, *(Texts.of(table["text"].filter(pa.array(side))) for side in (~held, held))
            advance(taken)


def with_ends(hashes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The words of documents, uint64, each document between BEGIN and END."""
    documents = np.arange(len(bounds) - 1)
    begins, ends = bounds[:-1] + 2 * documents, bounds[1:] + 2 * documents + 1
    inside = np.ones(len(hashes) + 2 * len(documents), bool)
    inside[begins] = inside[ends] = False
    result = np.empty(len(inside), np.uint64)
    result[inside], result[begins], result[ends] = hashes, KEYS[BEGIN], KEYS[END]
    return result


def by_frequency(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words by number, int32 [tokens], the most frequent first behind those of KEYS, and their hashes.

    tokens: uint64, KEYS first, which are not among those that are returned.
    """
    numbers, first, counts = number(tokens)
    order = np.concatenate([np.arange(SPECIAL), SPECIAL + np.argsort(-counts[SPECIAL:], kind="stable")])
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks[numbers[SPECIAL:]], tokens[first[order]]


def _names(texts: Texts, hashes: np.ndarray, config: PerplexityTraining) -> dict[int, str]:
    """The words of texts by their hash, as the model sees them."""
    found = words.split(texts, config.splitter)
    different, places = np.unique(hashes, return_index=True)
    pairs = zip(found.starts[places].tolist(), found.stops[places].tolist(), strict=True)
    spelt = [texts.data[start:stop].tobytes().decode() for start, stop in pairs]
    if config.fold:
        table = characters.folded()
        spelt = ["".join(chr(table[ord(character)]) for character in word) for word in spelt]
    return dict(zip(different.tolist(), spelt, strict=True))


def _describe(config: PerplexityTraining, made: Estimate) -> dict:
    return {
        "kind": KIND,
        "version": VERSION,
        "splitter": words.version(config.splitter),
        "fold": config.fold,
        "order": config.order,
        "settings": config.model_dump(mode="json"),
        "ngrams": [len(level.word) for level in made.ngrams],
        "found": made.found,
        "discounts": made.discounts,
        "fallback": made.fallback,
    }


def _evaluate(model: PerplexityModel, held: dict[str, list[Texts]]) -> dict[str, dict]:
    """By source: of its held-out documents together, and quantiles over them."""
    found = {}
    for source, pieces in held.items():
        log_p, tokens, unknown = map(np.concatenate, zip(*map(model.measure, pieces), strict=True))
        if len(tokens):
            quantiles = np.quantile(np.exp(-log_p / tokens), QUANTILES)
            found[source] = {
                "documents": len(tokens),
                "tokens": int(tokens.sum()),
                "unknown": float(unknown.sum() / tokens.sum()),
                "perplexity": float(np.exp(-log_p.sum() / tokens.sum())),
                "quantiles": dict(zip(map(str, QUANTILES), quantiles.tolist(), strict=True)),
            }
    return found
