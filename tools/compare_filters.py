"""Agreement of data_prep's rules with datatrove's own filters, rule by rule, on real documents.

    python tools/compare_filters.py --datatrove VENV/bin/python --en 'corpora/en/*.jsonl' --zh 'corpora/zh/*.jsonl'

Every rule of a profile is turned on alone on both sides, then all of them together, with the same words and sentences:
datatrove_filters.py, run by the other Python, asks this one for them. Files are .jsonl with the key `text`, or one
text each. Reported are the agreement of each rule (whether a document is dropped, and whether the same text is left),
every disagreement with what explains it, and for information the agreement where datatrove splits words itself, by
spaCy or jieba. Exit code 1 where agreement is below 100 % for a rule that looks at no words, or below 99 % for another.
"""

import argparse
import glob
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filter_pairs import REASONS, Pair, pairs

from data_prep.config import RulesConfig
from data_prep.config.rules import Profile
from data_prep.rules import columns, filter, sentences
from data_prep.rules.annotate import Measure, settings_of
from data_prep.text import words
from data_prep.text.texts import Texts
from maxlm.config import validate

LANGUAGES = {"en": "eng", "zh": "cmn"}
Verdict = tuple[str | None, str | None]


def load(patterns: Sequence[str], limit: int) -> list[str]:
    """Texts that are not blank, evenly chosen where there are more than `limit`."""
    texts = []
    for path in sorted(path for pattern in patterns for path in glob.glob(pattern, recursive=True)):
        content = Path(path).read_text(encoding="utf-8", errors="replace")
        found = [json.loads(line)["text"] for line in content.split("\n") if line] if path.endswith("l") else [content]
        texts += [text for text in found if text.strip()]
    step = max(1, -(-len(texts) // limit))
    return texts[::step]


def our_verdicts(pair: Pair, texts: Texts) -> list[Verdict]:
    """Reason why each document is dropped, or None and the hash of the text that is left."""
    measure = Measure(settings_of(pair.profile))
    verdicts: list[Verdict] = []
    for _, batch in texts.batches():
        rows, left = measure(batch)
        found = filter.failures(dict(zip(columns.NAMES, rows.T, strict=True)), pair.profile)
        kept = strings_of(batch)
        if left is not None:
            for document, text in zip(left.changed.tolist(), strings_of(left.texts), strict=True):
                kept[document] = text
        verdicts += [
            (filter.REASONS[number], None) if number >= 0 else (None, hashlib.sha256(text.encode()).hexdigest())
            for number, text in zip(found.tolist(), kept, strict=True)
        ]
    return verdicts


def strings_of(texts: Texts) -> list[str]:
    return [texts.data[a:b].tobytes().decode() for a, b in zip(texts.bounds[:-1], texts.bounds[1:], strict=True)]


def answer(request: str, splitter: str) -> str:
    kind, text = json.loads(request)
    if kind == "sentences":
        return json.dumps(sentences.split(text))
    encoded = text.encode()
    found = words.split(Texts.from_strings([text]), splitter)
    return json.dumps([encoded[a:b].decode() for a, b in zip(found.starts.tolist(), found.stops.tolist(), strict=True)])


def their_verdicts(
    python: str, pairs: Sequence[Pair], texts: list[str], language: str, own: bool
) -> list[list[Verdict]]:
    """Verdicts of datatrove by pair; with `own` words and sentences are datatrove's."""
    splitter = pairs[0].profile.words
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder, f"{name}.jsonl")) for name in ("documents", "results", "job")}
        Path(paths["documents"]).write_text("".join(json.dumps(text) + "\n" for text in texts))
        runs = [pair.steps for pair in pairs]
        job = {**paths, "runs": runs, "language": LANGUAGES[language], "own": own}
        Path(paths["job"]).write_text(json.dumps(job))
        command = [python, str(Path(__file__).with_name("datatrove_filters.py")), paths["job"]]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            for request in child.stdout:
                child.stdin.write(answer(request, splitter) + "\n")
                child.stdin.flush()
        if child.returncode:
            sys.exit(f"{' '.join(command)}: failed with exit code {child.returncode}")
        lines = Path(paths["results"]).read_text().splitlines()
    rows = [[(REASONS.get(reason, reason), digest) for reason, digest in json.loads(line)] for line in lines]
    return [list(column) for column in zip(*rows, strict=True)]


def explain(ours: Verdict, theirs: Verdict) -> str:
    if {ours[0], theirs[0]} == {"c4: lorem ipsum", "c4: curly bracket"}:
        return "has both; datatrove names the one whose line comes first"
    return "unexplained"


def differs(pair: Pair, ours: Verdict, theirs: Verdict) -> bool:
    """Whether documents are dropped on one side alone, or another text is left."""
    return (ours[0] is None) != (theirs[0] is None) or ours[1] != theirs[1]


def report(pairs: Sequence[Pair], ours: list, theirs: list, texts: list[str]) -> bool:
    """Print the table and all disagreements; whether agreement is as high as it must be."""
    good = True
    listed = []
    print(f"{'rule':52} {'dropped':>8} {'datatrove':>9} {'changed':>8} {'agree':>9} {'same reason':>11}")
    for pair, left, right in zip(pairs, ours, theirs, strict=True):
        wrong = [i for i, (a, b) in enumerate(zip(left, right, strict=True)) if differs(pair, a, b)]
        reasons = [i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a[0] != b[0] and i not in wrong]
        share = 1 - len(wrong) / len(texts)
        good &= share >= (0.99 if pair.words else 1)
        changed = sum(
            digest is not None and digest != hashlib.sha256(text.encode()).hexdigest()
            for (_, digest), text in zip(left, texts, strict=True)
        )
        counts = [sum(reason is not None for reason, _ in side) for side in (left, right)]
        same = 1 - (len(wrong) + len(reasons)) / len(texts)
        print(f"{pair.name:52} {counts[0]:8,} {counts[1]:9,} {changed:8,} {share:9.3%} {same:11.3%}")
        listed += [(pair, i, left[i], right[i]) for i in sorted({*wrong, *reasons})]
    for pair, i, a, b in listed:
        print(f"  {pair.name}: document {i}: {a[0] or 'kept'} | {b[0] or 'kept'}: {explain(a, b)}")
    print(f"{len(listed)} disagreements: {dict(Counter(explain(a, b) for pair, _, a, b in listed))}")
    return good


def compare(python: str, language: str, profile: Profile, texts: list[str], own: int) -> bool:
    every = list(pairs(profile))
    held = Texts.from_strings(texts)
    size = len(held.data)
    print(f"\n{language}: {len(texts):,} documents, {size / 1e6:.1f} MB, words of {profile.words}")
    ours = [our_verdicts(pair, held) for pair in every]
    good = report(every, ours, their_verdicts(python, every, texts, language, own=False), texts)
    if own:
        few = texts[:: -(-len(texts) // own)]
        chosen = [pair for pair in every if pair.words]
        print(f"\n{language}, for information: datatrove's own words, {len(few):,} documents")
        mine = [ours[every.index(pair)][:: -(-len(texts) // own)] for pair in chosen]
        for pair, left, right in zip(
            chosen, mine, their_verdicts(python, chosen, few, language, own=True), strict=True
        ):
            same = np.mean([(a[0] is None) == (b[0] is None) for a, b in zip(left, right, strict=True)])
            counts = [sum(reason is not None for reason, _ in side) for side in (left, right)]
            print(f"{pair.name:52} {counts[0]:8,} {counts[1]:9,} {same:18.1%}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datatrove", required=True, metavar="PYTHON", help="Python of an environment with datatrove.")
    for language in LANGUAGES:
        parser.add_argument(f"--{language}", nargs="*", default=[], metavar="GLOB", help="Files of texts.")
    parser.add_argument("--documents", type=int, default=6000, help="Most documents per language.")
    parser.add_argument("--own", type=int, default=500, help="Documents with datatrove's own words; 0 for none.")
    options = parser.parse_args()
    profiles = validate({"profiles": {"en": "en", "zh": "zh", "default": None}}, RulesConfig, "profiles").profiles
    good = True
    for language in LANGUAGES:
        if texts := load(getattr(options, language), options.documents):
            good &= compare(options.datatrove, language, profiles[language], texts, options.own)
    sys.exit(not good)


if __name__ == "__main__":
    main()
