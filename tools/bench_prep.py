"""How fast preparation is, step by step beside datatrove, on real English and Chinese, in one run.

    python tools/fetch_corpora.py /tmp/corpora
    python tools/bench_prep.py /tmp/corpora --install-datatrove /tmp/datatrove

Every row is measured in fresh processes, ours and then datatrove's, with the processors they may use pinned: one core
for a step, two for fuzzy deduplication and the whole pipeline. Both are warmed with a little text first, so that
neither imports nor models nor compilation count. Figures are medians of `--runs`; MB are 10^6 bytes of UTF-8 text, or
of HTML where the row says so. datatrove reads the beginning of the same corpora, as its steps take minutes per 100 MB;
the corpora are in random order, so that a beginning is a sample.

extract   ours: stage ingest on WARC files, with resiliparse, to text shards on disk
          datatrove: WarcReader and Trafilatura; the text stays in memory
rules-en  ours: stage rules, every statistic and every rule of a document, to lists on disk
rules-zh  datatrove: Gopher repetition and quality, C4, FineWeb; what one filter drops spares the next ones work
fuzzy     ours: stage fuzzy, from text shards to the lists of what is dropped
          datatrove: its four stages, from lines of JSON to the lines that are left
tokens    ours: text shards to final shards, with the proof that nothing is lost, the shuffle, checksums and fsync
          datatrove: DocumentTokenizer with its shuffle, from texts in memory; no special token, no check
whole     ours: WARC to final shards, with a tokenizer trained, and every stage's share of the time
          datatrove: extraction, English rules, MinHash and tokens, with our tokenizer

With `--datatrove PYTHON` its environment exists already; without either, ours are measured alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from bench_prep_inputs import Inputs, prepare

TOOLS = Path(__file__).parent
OURS, THEIRS = TOOLS / "bench_prep_ours.py", TOOLS / "bench_prep_datatrove.py"
# What each row is, how many cores it has, and the measure that is compared.
ROWS = {
    "extract": ("WARC to text, MB/s of HTML", 1, "html"),
    "rules-en": ("all rules, en", 1, "text"),
    "rules-zh": ("all rules, zh", 1, "text"),
    "fuzzy": ("fuzzy dedup end to end, 2 cores", 2, "text"),
    "tokens": ("tokenize to shards, 32k BPE", 1, "text"),
    "whole": ("WARC to shards, 2 cores, MB/s of HTML", 2, "html"),
}
# lxml_html_clean: without it this trafilatura fails on every page, and datatrove drops them all.
PACKAGES = ["datatrove[processing,io]==0.10.1", "spacy", "jieba", "trafilatura<1.12", "lxml_html_clean"]
VERSIONS = ["gigatoken", "tokenizers", "resiliparse", "fastwarc", "daft", "pyarrow", "numba", "numpy"]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="what tools/fetch_corpora.py wrote")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--runs", type=int, default=3, help="of each row; the median counts")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--datatrove", metavar="PYTHON", help="interpreter of an environment that has datatrove")
    which.add_argument("--install-datatrove", type=Path, metavar="DIR", help="make such an environment there first")
    parser.add_argument("--datatrove-mb", type=float, nargs=2, default=[8, 2], metavar=("EN", "ZH"))
    parser.add_argument("--datatrove-pages", type=int, default=400, help="pages of the WARC that datatrove reads")
    parser.add_argument("--mb", type=float, help="take so much of each corpus alone, for a try; 5 pages stand for a MB")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--work", type=Path, help="folder for results between; CORPORA/bench without it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures there")
    return parser.parse_args(words)


def install(directory: Path) -> str:
    """The interpreter of an environment with datatrove, made where there is none."""
    python = directory / "bin" / "python"
    if not python.is_file():
        print(f"installing {', '.join(PACKAGES)} into {directory}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([python, "-m", "pip", "-qq", "--disable-pip-version-check", "install", *PACKAGES], check=True)
    return str(python)


def measure(python: str, script: Path, row: str, inputs: Inputs, args: argparse.Namespace, cores: list[int]) -> dict:
    """What the script says of a row, in a process of its own that has these cores."""
    spec = {"row": row, "runs": args.runs, "cores": cores, "vocab_size": args.vocab_size, "inputs": inputs.paths}
    environment = os.environ | {
        "PYTHONPATH": str(TOOLS.parent) if script == OURS else "",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
    }
    log = inputs.work / f"{row}-{script.stem}.log"
    with open(log, "w") as said:
        command = [python, str(script), json.dumps(spec)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
    if done.returncode:
        lines = log.read_text().strip().splitlines() or ["nothing was said"]
        sys.exit(f"{row}: {script.name} failed with exit code {done.returncode}; {log} ends: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def recall(found: dict, pairs: list) -> dict:
    """How many planted pairs of true Jaccard similarity >= 0.8 are not both left; and of those from 0.5 to 0.6."""
    left = set(found.pop("left"))
    parts = {
        "recall": [p for p in pairs if p[2] >= 0.8],
        "found_at_0.5_to_0.6": [p for p in pairs if 0.5 <= p[2] < 0.6],
    }
    shares = {
        name: round(sum(not {one, other} <= left for one, other, _ in chosen) / len(chosen), 4) if chosen else None
        for name, chosen in parts.items()
    }
    return found | shares | {"planted": len(parts["recall"])}


def run_row(row: str, inputs: Inputs, args: argparse.Namespace, datatrove: str | None) -> dict:
    name, count, _ = ROWS[row]
    cores = sorted(os.sched_getaffinity(0))[-count:]
    result: dict = {"row": row, "name": name, "cores": cores, "load": [round(os.getloadavg()[0], 2)]}
    sides = {"ours": (sys.executable, OURS)} | ({"datatrove": (datatrove, THEIRS)} if datatrove else {})
    for side, (python, script) in sides.items():
        found = measure(python, script, row, inputs, args, cores)
        if row == "fuzzy":
            found = recall(found, inputs.pairs if side == "ours" else inputs.first_pairs)
        result[side] = found
    result["load"].append(round(os.getloadavg()[0], 2))
    if datatrove:
        result["ratio"] = result["ours"]["mb_per_second"] / result["datatrove"]["mb_per_second"]
    return result


def show(result: dict) -> None:
    """A row of the table, and a line of what else was found."""
    theirs = result.get("datatrove")
    figures = f"{theirs['mb_per_second']:.2f} | " if theirs else "- | "
    figures += f"{result['ours']['mb_per_second']:.1f} | " + (f"{result['ratio']:.0f} x |" if theirs else "- |")
    print(f"| {result['name']} | {figures}", flush=True)


def details(result: dict) -> None:
    for side in ("ours", "datatrove"):
        if side in result:
            found = {key: value for key, value in result[side].items() if key not in ("seconds", "mb_per_second")}
            seconds = ", ".join(f"{second:.2f}" for second in result[side]["seconds"])
            said = "; ".join(f"{key} {_plain(value)}" for key, value in found.items())
            print(f"{result['row']}, {side}: {seconds} s; {said}; load {result['load'][0]} to {result['load'][1]}")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def main(words: list[str] | None = None) -> dict:
    args = parse(words)
    datatrove = install(args.install_datatrove) if args.install_datatrove else args.datatrove
    command = " ".join(["python", "tools/bench_prep.py", *(words if words is not None else sys.argv[1:])])
    about = machine() | {"command": command}
    print(f"{about['time']}, {about['cpu']}, {about['cores']} cores, load {about['load'][0]:.2f}")
    print(f"Python {about['python']}, " + ", ".join(f"{name} {found}" for name, found in about["versions"].items()))
    print(command, end="\n\n", flush=True)
    inputs = prepare(args.corpora, args.work or args.corpora / "bench", args)
    print("| step | datatrove MB/s | ours MB/s | ratio |\n|---|---|---|---|", flush=True)
    results = []
    try:
        for row in args.rows:
            results.append(run_row(row, inputs, args, datatrove))
            show(results[-1])
    finally:
        print()
        for result in results:
            details(result)
    made = about | {"rows": results}
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    return made


if __name__ == "__main__":
    main()
