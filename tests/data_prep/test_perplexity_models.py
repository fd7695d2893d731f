"""Perplexity: the model's numbers against the definition, its sums against the back-off rule, and models on disk."""

import io
import json
import math
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.config import QualityModel
from data_prep.pipeline import train_model
from data_prep.quality import automaton
from data_prep.quality.arpa import write_arpa
from data_prep.quality.kneser_ney import BEGIN, END, FALLBACK, SPECIAL, UNKNOWN, estimate
from data_prep.quality.perplexity import open_model
from data_prep.text.texts import Texts
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError

PRUNE = ([0], [0, 0, 1], [0, 1, 1, 2])


def corpus(documents=60, words=30, seed=0):
    """Documents of words 3, 4, ..., small numbers more often, and what follows a word depends on it."""
    generator, found = random.Random(seed), []
    for _ in range(documents):
        last = generator.randrange(words)
        document = []
        for _ in range(generator.randrange(25)):
            last = (last * 3 + min(generator.randrange(words), generator.randrange(words))) % words
            document.append(SPECIAL + last)
        found.append([BEGIN, *document, END])
    return found


class Reference:
    """The estimate by its definition, over tuples of words (Heafield and others 2013, section 3)."""

    def __init__(self, documents, order, prune, vocabulary):
        self.counts = defaultdict(Counter)
        for document in documents:
            for length in range(1, order + 1):
                for start in range(len(document) - length + 1):
                    self.counts[length][tuple(document[start : start + length])] += 1
        self.kept, self.p, self.backoff, self.discounts = set(), {}, {(): 1.0}, {}
        types = {word for document in documents for word in document} | {UNKNOWN}
        known = {word for word in types if word < vocabulary}
        uniform = 1 / (len(known) - 1)
        for length in range(1, order + 1):
            counts = dict(self.counts[length])
            if length == 1:
                counts[(UNKNOWN,)] = 0
            adjusted = {gram: self._adjusted(gram, order) for gram in counts}
            discounts = self.discounts[length] = self._discount(Counter(adjusted.values()))
            threshold = prune[min(length, len(prune)) - 1]
            kept = {gram for gram, count in counts.items() if set(gram) <= known and (count > threshold or length == 1)}
            children = defaultdict(list)
            for gram in adjusted:
                children[gram[:-1]].append(gram)
            for context, grams in children.items():
                total = sum(adjusted[gram] for gram in grams)
                free = sum(discounts[min(adjusted[g], 3)] if g in kept else adjusted[g] for g in grams)
                self.backoff[context] = free / total
                for gram in kept.intersection(grams):
                    lower = self.p[gram[1:]] if length > 1 else uniform
                    own = adjusted[gram] - discounts[min(adjusted[gram], 3)]
                    self.p[gram] = own / total + self.backoff[context] * lower
            self.kept |= kept

    def _adjusted(self, gram, order):
        if gram == (BEGIN,):
            return 0
        if len(gram) == order or gram[0] == BEGIN:
            return self.counts[len(gram)][gram]
        return sum(longer[1:] == gram for longer in self.counts[len(gram) + 1])

    def _discount(self, n):
        if not all(n[count] for count in (1, 2, 3, 4)):
            return [0, *FALLBACK]
        y = n[1] / (n[1] + 2 * n[2])
        return [0, *(count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3))]

    def log_p(self, word, history):
        """By the back-off rule, from the longest n-gram to the shortest."""
        for start in range(len(history) + 1):
            if (gram := (*history[start:], word)) in self.p:
                free = [self.backoff.get(tuple(history[longer:]), 1.0) for longer in range(start)]
                return math.log(self.p[gram]) + sum(map(math.log, free))
        return self.log_p(UNKNOWN, history)


def grams(levels):
    """The n-grams of an estimate as tuples, by length."""
    found = [[(word,) for word in levels[0].word.tolist()]]
    for level in levels[1:]:
        found.append([(*found[-1][c], w) for c, w in zip(level.context.tolist(), level.word.tolist(), strict=True)])
    return found


def flat(documents):
    return np.array(sum(documents, []), np.int32)


@pytest.mark.parametrize("prune", PRUNE)
@pytest.mark.parametrize("vocabulary", [SPECIAL + 30, SPECIAL + 12])
def test_the_estimate_is_that_of_its_definition(prune, vocabulary):
    documents = corpus()
    made, expected = estimate(flat(documents), 4, prune, vocabulary), Reference(documents, 4, prune, vocabulary)
    assert made.found[1:] == [len(expected.counts[length]) for length in (2, 3, 4)]
    for length, (level, found) in enumerate(zip(made.ngrams, grams(made.ngrams), strict=True), 1):
        assert set(found) == {gram for gram in expected.kept if len(gram) == length}
        assert made.discounts[length - 1] == pytest.approx(expected.discounts[length][1:])
        for gram, log_p, backoff in zip(found, level.log_p.tolist(), level.backoff.tolist(), strict=True):
            assert gram == (BEGIN,) or math.exp(log_p) == pytest.approx(expected.p[gram], rel=1e-5)
            assert length == 4 or backoff == pytest.approx(expected.backoff.get(gram, 1.0), rel=1e-5)
    assert 1 not in made.fallback or vocabulary == SPECIAL + 12 or made.discounts[0] == list(FALLBACK)
    assert len(made.fallback) < 4, "the test is of real discounts too"


@pytest.mark.parametrize("prune", PRUNE)
def test_probabilities_of_all_words_sum_to_one_after_any_history(prune):
    documents = corpus()
    model = Reference(documents, 3, prune, SPECIAL + 20)
    automatic = asked(estimate(flat(documents), 3, prune, SPECIAL + 20))
    for history in ([BEGIN], [BEGIN, 5], [5, 7], [4, 9], [UNKNOWN], [7, UNKNOWN]):
        words = [word for word in range(SPECIAL + 20) if word != BEGIN]
        assert sum(math.exp(model.log_p(word, history)) for word in words) == pytest.approx(1, rel=1e-6)
    # The same of what is asked: the probabilities of documents of one word, whatever follows, are those of the word.
    whole = {word: automatic([[word]])[0][0] for word in range(SPECIAL, SPECIAL + 20)}
    for word, found in whole.items():
        expected = model.log_p(word, [BEGIN]) + model.log_p(END, [BEGIN, word])
        assert found == pytest.approx(expected, rel=1e-5)


def asked(made):
    """`measure` of a model over documents of numbers, whose hash is one more."""
    tables = automaton.compiled(made, np.arange(1, len(made.ngrams[0].word) + 1, dtype=np.uint64))
    assert automaton.flaw(tables) is None

    def call(documents):
        bounds = np.cumsum([0, *map(len, documents)])
        return automaton.measure(flat(documents).astype(np.uint64) + np.uint64(1), bounds, **tables)

    return call


@pytest.mark.parametrize("prune", PRUNE)
@pytest.mark.parametrize("order", [2, 5])
def test_what_is_asked_is_the_sum_of_the_back_off_rule(prune, order):
    documents, unseen = corpus(), corpus(seed=1)
    vocabulary = SPECIAL + 25
    model = Reference(documents, order, prune, vocabulary)
    log_p, tokens, unknown = asked(estimate(flat(documents), order, prune, vocabulary))([one[1:-1] for one in unseen])
    for number, document in enumerate(unseen):
        known = [word if word < vocabulary else UNKNOWN for word in document]
        places = range(1, len(known))
        expected = sum(model.log_p(known[at], known[max(0, at - order + 1) : at]) for at in places)
        assert log_p[number] == pytest.approx(expected, rel=1e-5)
        assert tokens[number] == len(document) - 1 and unknown[number] == known.count(UNKNOWN)
    assert unknown.sum() > 0 and tokens.min() == 1, "some words are unknown, and a document is empty"


def test_an_arpa_file_says_the_same(tmp_path):
    made = estimate(flat(corpus()), 3, [0, 0, 1], SPECIAL + 30)
    words = [f"w{number}" for number in range(28)] + ["<s>", "a\0b"]
    write_arpa(tmp_path / "model.arpa", made.ngrams, words)
    header, *sections = (tmp_path / "model.arpa").read_text(encoding="utf-8").split("\n\n")
    assert header == "\\data\\\n" + "\n".join(f"ngram {i}={len(level.word)}" for i, level in enumerate(made.ngrams, 1))
    assert sections.pop() == "\\end\\\n"
    names = ["<unk>", "<s>", "</s>", *words[:-2], "‹s›", "a‹0›b"]
    for length, (section, level) in enumerate(zip(sections, made.ngrams, strict=True), 1):
        title, *lines = section.split("\n")
        assert title == f"\\{length}-grams:"
        for line, gram, log_p, backoff in zip(
            lines, grams(made.ngrams)[length - 1], level.log_p.tolist(), level.backoff.tolist(), strict=True
        ):
            p, spelt, *free = line.split("\t")
            assert spelt.split(" ") == [names[word] for word in gram]
            assert float(p) == (-99 if gram == (BEGIN,) else pytest.approx(log_p / math.log(10), rel=1e-5))
            assert [float(one) for one in free] == (
                [] if length == 3 else [pytest.approx(math.log10(backoff), abs=1e-5)]
            )


ANIMALS, VERBS = ["cat", "dog", "horse", "hen", "fox", "owl"], ["sees", "hears", "follows", "likes"]


def sentence(generator):
    subject, verb, other = generator.choice(ANIMALS), generator.choice(VERBS), generator.choice(ANIMALS)
    return f"The {subject} {verb} the {generator.choice(['old', 'young', 'small'])} {other}, and nobody minds."


def prose(number):
    generator = random.Random(number)
    return " ".join(sentence(generator) for _ in range(generator.randrange(3, 12)))


@pytest.fixture
def train(tmp_path):
    """`train-model` over documents by source; returns the model's directory and what was printed."""

    def call(sources=None, /, workers=1, **perplexity):
        sources = sources or {"prose": [prose(number) for number in range(200)]}
        ingest = {"sources": {}, "shard_bytes": 20_000}
        for name, texts in sources.items():
            path = tmp_path / f"{name}.jsonl"
            content = "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
            if not path.exists() or path.read_text() != content:
                path.write_text(content)
            ingest["sources"][name] = {"kind": "jsonl", "path": str(path), "id_field": "id"}
        settings = {"held_out": 0.1} | perplexity
        values = {"name": "animals", "output": str(tmp_path / "models"), "workers": workers}
        config = validate(values | {"ingest": ingest, "perplexity": settings}, QualityModel, "test")
        console = Console(file=io.StringIO(), width=200)
        return train_model(config, console), console.file.getvalue()

    return call


def described(directory: Path) -> dict:
    return json.loads((directory / "model.json").read_bytes())


def test_a_trained_model_knows_its_language_and_is_kept(train):
    directory, printed = train()
    assert " 5-grams, trained on 1" in printed and "held out, prose:" in printed and "up to date, 1 made" in printed
    values = described(directory)
    assert (values["kind"], values["order"], values["splitter"][0]) == ("perplexity", 5, "unicode")
    evaluation = values["evaluation"]["prose"]
    assert values["trained"]["documents"] + evaluation["documents"] == 200 and 5 < evaluation["documents"] < 40
    assert evaluation["unknown"] == 0 and 1 < evaluation["perplexity"] < 4
    generator = random.Random(5)
    shuffled = [" ".join(generator.sample(text.split(), len(text.split()))) for text in map(prose, range(900, 920))]
    model = open_model(directory)
    own, mixed, other = (
        model.score(Texts.from_strings(texts))
        for texts in ([prose(number) for number in range(900, 920)], shuffled, ["def f(x):\n    return x[1:]", "", "!"])
    )
    assert own.dtype == np.float32 and own.max() < 4 < mixed.min() and mixed.max() < other[0]
    assert np.isfinite(other).all() and len(model.score(Texts.from_strings([]))) == 0
    assert "1 of 1 models up to date\n" in train()[1]
    printed = train(prune=[0, 2])[1]
    assert "0 of 1 models up to date, 1 made" in printed and "made" not in printed.split("models up to date")[0][:-1]
    assert described(directory)["ngrams"] < values["ngrams"]


def test_case_script_and_line_breaks_do_not_matter_when_folded(train):
    simplified = ["图书馆每天都开放，所有人都可以借阅书籍。", "请在两个星期之内归还书籍，别人也能借阅。"] * 20
    directory, _ = train({"zh": simplified}, held_out=0.3)
    model = open_model(directory)
    one, two, three, four = model.score(
        Texts.from_strings(["图书馆都开放。", "圖書館都開放。", "图书馆\n都开放。\n", "圕开放"])
    ).tolist()
    assert one == two == three != four
    directory, _ = train({"zh": simplified}, held_out=0.3, fold=False)
    model = open_model(directory)
    one, two = model.score(Texts.from_strings(["图书馆都开放。", "圖書館都開放。"])).tolist()
    assert one < two, "traditional characters are unknown"
    assert described(directory)["fold"] is False


def test_limits_hold(train):
    sources = {"prose": [prose(number) for number in range(150)], "code": [f"x{i} = {i}" for i in range(200)]}
    total = sum(len(text.encode()) for texts in sources.values() for text in texts)
    directory, _ = train(sources, max_bytes=total // 3)
    values = described(directory)
    assert total // 5 < values["trained"]["bytes"] <= total // 3 and set(values["evaluation"]) == {"prose", "code"}
    directory, _ = train(sources, vocabulary=12)
    values = described(directory)
    assert values["ngrams"][0] == 12 + SPECIAL < values["found"][0]
    assert values["evaluation"]["code"]["unknown"] > 0.3 > values["evaluation"]["prose"]["unknown"]


def test_the_model_does_not_depend_on_workers_and_is_written_as_arpa(train, contents):
    directory, _ = train(arpa=True)
    first = contents(directory)
    (directory.parent / ".work" / "animals").rename(directory.parent / "gone")
    directory, _ = train(arpa=True, workers=2)
    assert contents(directory) == first
    assert set(first) == {"model.json", "model.arpa", "vocabulary.npy", "ngrams.npy", "states.npy"}
    text = first["model.arpa"].decode()
    assert "\tthe\t" in text and "\tThe\t" not in text and "\tthe cat\t" in text
    unigrams = text.partition("\\1-grams:\n")[2].partition("\n\n")[0].splitlines()
    assert unigrams[0].split("\t")[1:] == ["<unk>", "0"] and unigrams[1].startswith("-99\t<s>\t-")


def test_too_little_text_is_told(train):
    with pytest.raises(DataError, match="no document is held out; change perplexity.held_out"):
        train({"prose": ["one document"]})
    _, printed = train({"prose": [f"word{i} again" for i in range(20)]}, held_out=0.3)
    assert "too little text to estimate the discounts of n-grams of length" in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune": [0, 2, 1]}, "prune must begin with 0 and not fall"),
        ({"prune": [1]}, "prune must begin with 0"),
        ({"order": 1}, "perplexity.order"),
        ({"held_out": 0}, "perplexity.held_out"),
        ({"max_bytes": 2**31}, "perplexity.max_bytes"),
        ({"sources": ["poems"]}, "poems"),
        ({"splitter": "unikode"}, "no word splitter is called 'unikode'; the nearest is 'unicode'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(train, settings, message):
    with pytest.raises(ConfigError, match=message):
        train(**settings)


def test_a_model_that_cannot_be_used_is_one_line(train, tmp_path):
    directory, _ = train()
    path, values = directory / "model.json", described(directory)
    for changed, message in (
        ({"version": 99}, "version 99, expected"),
        ({"kind": "classifier"}, "kind classifier, expected perplexity"),
        ({"splitter": ["unicode", 0]}, r"splitter \['unicode', 0\], expected"),
    ):
        path.write_text(json.dumps(values | changed))
        with pytest.raises(DataError, match=f"{message}.*train the model again"):
            open_model(directory)
    path.write_text(json.dumps(values))
    tables = open_model(directory).tables
    for name, field, value, message in (
        ("states", "suffix", 2**31, "no earlier state"),
        ("ngrams", "next", 2**31, "not in states"),
        ("vocabulary", "key", 7, "no empty place"),
        ("vocabulary", "key", [0, 5], "lacks the ends"),
    ):
        copy = tmp_path / message
        shutil.copytree(directory, copy)
        damaged = np.array(tables[name])
        damaged[field] = np.resize(value, len(damaged))
        np.save(copy / f"{name}.npy", damaged)
        with pytest.raises(DataError, match=f"damaged .*{message}"):
            open_model(copy)
    np.save(copy / "states.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="no model of perplexity that can be read"):
        open_model(copy)
    with pytest.raises(DataError, match="No such file"):
        open_model(tmp_path / "nowhere")
