"""How fast synthetic data is asked for and kept, with a server on loopback in a process of its own.

    python tools/bench_synthesis.py DIRECTORY --seeds 2000 --concurrency 64 --latency 0.05

Prints, as JSON: requests a second, and seconds and peak memory, of a run that asks everything; seconds of the same
command once more, which asks nothing; and what the journal takes.
"""

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

TOOLS = Path(__file__).parent
WORDS = ["seed", "documents", "are", "what", "a", "server", "is", "asked", "about", "and", "answers", "make", "others"]
ATTEMPTS = 1000


def write_recipe(directory: Path, url: str, seeds: int, concurrency: int) -> Path:
    """A recipe with a score pass over seeds of about 1 kB."""
    with open(directory / "seeds.jsonl", "w") as file:
        for number in range(seeds):
            text = " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(180))
            file.write(json.dumps({"id": f"s{number}", "text": f"{number}: {text}"}) + "\n")
    prompts = TOOLS.parent / "configs" / "prep" / "prompts"
    values = {
        "name": "bench",
        "output": str(directory / "out"),
        "workers": 1,
        "ingest": {"sources": {"web": {"kind": "jsonl", "path": str(directory / "seeds.jsonl"), "id_field": "id"}}},
        "server": {"url": url, "model": "made-up", "concurrency": concurrency},
        "generate": {"prompts": {"qa": {"file": str(prompts / "qa-en.txt")}}},
        "answer": {"schema": {"type": "object", "required": ["problem", "solution"]}},
        "score": {"prompts": {"score": {"file": str(prompts / "score-en.txt")}}, "min_score": 3},
        "text": "{problem}\n\n{solution}",
        "filter": {"unique": "{problem}", "max_copied": 0.5},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(recipe: Path) -> tuple[float, dict]:
    """Seconds of the command without those of its start, and its summary."""
    from rich.console import Console

    from data_prep.config import Synthesis
    from data_prep.synthesize.run import synthesize
    from maxlm.config import load

    config = load(recipe, [], Synthesis)
    begin = time.perf_counter()
    with open("/dev/null", "w") as sink:
        synthesize(config, Console(file=sink))
    return time.perf_counter() - begin, json.loads((config.directory / "synthesis.json").read_text())


def commits(directory: Path) -> dict[str, int]:
    """Attempts that are written down in a second, one after the other and all at a time."""
    from data_prep.synthesize.journal import Commits, Journal

    async def write(journal: Journal, at_a_time: int) -> int:
        writer, begin = Commits(journal), time.perf_counter()
        for _ in range(ATTEMPTS // at_a_time):
            await asyncio.gather(*(writer.open_attempt("key", 0.0) for _ in range(at_a_time)))
        writer.close()
        return round(ATTEMPTS / (time.perf_counter() - begin))

    shutil.rmtree(directory, ignore_errors=True)
    with Journal(directory) as journal:
        return {str(number): asyncio.run(write(journal, number)) for number in (1, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before an answer")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(given.directory / "out", ignore_errors=True)
    command = [sys.executable, str(TOOLS / "answer_server.py"), "--latency", str(given.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip()
            # Compiles what is compiled at first use.
            _, before = run(write_recipe(given.directory, url, 8, given.concurrency))
            recipe = write_recipe(given.directory, url, given.seeds, given.concurrency)
            asked, summary = run(recipe)
            again, same = run(recipe)
        finally:
            server.terminate()
    assert summary == same and summary["left"] == 0
    requests = summary["requests"] - before["requests"]
    figures = {
        "requests": requests,
        "requests_per_s": round(requests / asked, 1),
        "asked_s": round(asked, 2),
        "again_s": round(again, 2),
        "journal_bytes_per_answer": (given.directory / "out" / "journal.sqlite").stat().st_size // summary["answered"],
        "commits_per_s": commits(given.directory / "commits"),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
