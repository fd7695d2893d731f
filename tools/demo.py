"""The main job on one machine: the running Python's standard library as text, a tokenizer, a model of a few million
parameters, its held-out quality beside gzip and xz, and a sample.

    python tools/demo.py

It is `maxlm-prep run`, `maxlm train`, `maxlm eval` and `maxlm generate` one after the other, each with what the one
before wrote. Run again it goes on where it stopped, and what is finished is not done again.
"""

import gzip
import json
import lzma
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREP, RUN = "configs/prep/quickstart.yaml", "configs/runs/quickstart.yaml"
PROMPT = "def "


def main() -> None:
    os.chdir(ROOT)
    from maxlm.config import load
    from maxlm.errors import MaxlmError

    try:
        heading("1/4  prepare: text -> tokenizer and shards")
        prepare()
        config = load(RUN)
        heading(f"2/4  train: {config.model.num_layers} layers, {config.total_tokens:,} tokens")
        import maxlm

        maxlm.train(config)
        heading("3/4  evaluate on the held-out files")
        result = evaluate(config.run_dir)
        heading("4/4  sample")
        sample = "".join(continuation(config.run_dir))
        summary(config, result, sample)
    except MaxlmError as error:
        error.exit()
    except KeyboardInterrupt:
        print("interrupted; `make demo` goes on from here", file=sys.stderr)
        sys.exit(130)


def prepare() -> None:
    from rich.console import Console

    from data_prep.config import Pipeline
    from data_prep.pipeline import run
    from maxlm.config import load

    library = sysconfig.get_path("stdlib")
    run(load(PREP, [f"ingest.sources.stdlib.path={library}"], Pipeline), Console(stderr=True))


def evaluate(run_dir: Path) -> dict:
    """Held-out figures of the newest checkpoint, kept in demo.json so that they are computed once."""
    from maxlm import saved
    from maxlm.evaluate.command import Asked, evaluate_path

    step, kept = saved.latest(run_dir).name, run_dir / "demo.json"
    if kept.is_file() and (found := json.loads(kept.read_text()))["step"] == step:
        return found
    result = evaluate_path(run_dir, Asked())["stdlib"]._asdict() | {"step": step}
    result |= {f"{name} -{level}": bits for name, level, bits in compressors(run_dir)}
    kept.write_text(json.dumps(result))
    return result


def compressors(run_dir: Path) -> Iterator[tuple[str, int, float]]:
    """Bits per byte of gzip -9 and xz -9 over the held-out files, each file compressed alone."""
    texts = list(held_out_texts(run_dir))
    total = sum(map(len, texts))
    yield "gzip", 9, 8 * sum(len(gzip.compress(text, 9, mtime=0)) for text in texts) / total
    yield "xz", 9, 8 * sum(len(lzma.compress(text, preset=9)) for text in texts) / total


def held_out_texts(run_dir: Path) -> Iterator[bytes]:
    """The held-out files, decoded from their shards: what the model was evaluated on, byte for byte."""
    from maxlm.config import load
    from maxlm.data.shards import Shards
    from maxlm.data.tokenizer import Tokenizer

    shards = Shards(load(run_dir / "config.yaml").data.validation["stdlib"].path)
    tokenizer = Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)
    start = 0
    for end in shards.ends(0, len(shards)).tolist():
        yield tokenizer.decode(shards.read(start, end).tolist()).encode()
        start = end


def continuation(run_dir: Path) -> Iterator[str]:
    from maxlm.evaluate.generation import generate_texts
    from maxlm.evaluate.sampling import Sampling

    sampling = Sampling(temperature=0.6, top_p=0.9)
    printed = {"mesh": None, "dtype": None, "batch_size": 1, "as_json": False, "logprobs": False}
    return generate_texts(run_dir, [PROMPT], max_tokens=120, sampling=sampling, **printed)


def summary(config, result: dict, sample: str) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    console = Console(width=min(Console().width, 100))
    table = Table("held-out files", "loss", "perplexity", "bits per byte", title="Result")
    table.add_row("model", f"{result['loss']:.3f}", f"{result['perplexity']:.1f}", f"{result['bits_per_byte']:.3f}")
    for name in ("gzip -9", "xz -9"):
        table.add_row(f"{name}, each file", "", "", f"{result[name]:.3f}")
    console.print(table)
    console.print(Panel(sample.rstrip(), title=f"sample after '{PROMPT}'", title_align="left"), markup=False)
    console.print(f"report      {config.run_dir / 'report.html'}", soft_wrap=True)
    console.print(f"checkpoint  {config.run_dir / 'checkpoints' / result['step']}", soft_wrap=True)


def heading(text: str) -> None:
    print(f"\n== {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
