"""lm-eval's tasks through maxlm beside lm-eval's own `hf`, on one machine: figures, seconds, and what is padding.

    python tools/bench_tasks.py FOLDER SHARDS        # needs lm-eval, torch and transformers

FOLDER is a Hugging Face folder that both read, SHARDS held-out shards of its tokenizer. Three tasks are made of the
documents: which of four lines comes next (`lines`), the same asked for a letter (`letters`), and whole documents that
are read in windows (`documents`). Each is measured in turns, hf and maxlm, after a first time that compiles; ratios are
of pairs.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import jax

from maxlm.data.shards import Shards
from maxlm.data.tokenizer import Tokenizer
from maxlm.evaluate.load import find_source, load_source
from maxlm.evaluate.placing import named_mesh
from maxlm.evaluate.scoring import Request, Scorer
from maxlm.evaluate.task_command import build
from maxlm.evaluate.tasks import Wanted, evaluate_task, open_tasks
from maxlm.parallel import runtime

QUESTIONS, DOCUMENTS, CONTEXT, LINES = 40, 8, 12, 4
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
output_type: {kind}
test_split: test
doc_to_text: {text}
doc_to_target: {target}
target_delimiter: ""
"""
LETTERS = """doc_to_choice: [" A", " B", " C", " D"]\n"""
QUESTION = '"{{text}}\\n# A {{choices[0]}}# B {{choices[1]}}# C {{choices[2]}}# D {{choices[3]}}#"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    runtime.setup()
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), list(texts(options.shards)))
        tasks = open_tasks(Wanted(["lines", "letters", "documents"], folder))
        # After lm-eval's own libraries are told to stay off the network.
        from lm_eval.models.huggingface import HFLM

        loaded = load_source(find_source(options.folder), mesh=named_mesh("data=1", jax.devices()))
        models = {
            "hf": HFLM(pretrained=str(options.folder), device="cpu", dtype="float32", batch_size=options.batch),
            "maxlm": build(loaded, options.batch),
        }
        for name in tasks.tasks:
            print(
                json.dumps({"task": name} | compared(tasks, name, models, options.turns) | shares(tasks, name, models))
            )


def texts(directory: Path):
    shards = Shards(directory)
    tokenizer, start = Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer), 0
    for end in shards.ends(0, len(shards)).tolist():
        yield tokenizer.decode(shards.read(start, end).tolist())
        start = end


def write_tasks(folder: Path, documents: list[str]) -> None:
    draw, questions = random.Random(0), []
    lines = [[line + "\n" for line in text.split("\n") if line.strip()] for text in documents]
    lines = [found for found in lines if len(found) > CONTEXT + 1]
    for number in range(QUESTIONS):
        found = lines[number % len(lines)]
        place = draw.randrange(1, len(found))
        others = [draw.choice(draw.choice(lines)) for _ in range(LINES - 1)]
        answer = draw.randrange(LINES)
        choices = others[:answer] + [found[place]] + others[answer:]
        context = "".join(found[max(0, place - CONTEXT) : place])
        questions.append({"text": context.rstrip("\n"), "choices": choices, "answer": answer})
    for question in questions:
        question["next"] = ["\n" + choice for choice in question["choices"]]
    write(folder, "lines", questions, "multiple_choice", "text", "answer", "doc_to_choice: next\n")
    write(folder, "letters", questions, "multiple_choice", QUESTION, "answer", LETTERS)
    chosen = [{"text": text} for text in documents[:DOCUMENTS]]
    write(folder, "documents", chosen, "loglikelihood_rolling", '""', "text", "")


def write(folder: Path, name: str, rows: list[dict], kind: str, text: str, target: str, rest: str) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, text=text, target=target) + rest)


def compared(tasks, name: str, models: dict, turns: int) -> dict:
    seconds = {kind: [] for kind in models}
    for _ in range(turns + 1):
        figures = {}
        for kind, model in models.items():
            began = time.monotonic()
            figures[kind] = evaluate_task(tasks, name, model)["metrics"]
            seconds[kind].append(time.monotonic() - began)
    ratios = [hf / ours for hf, ours in zip(seconds["hf"][1:], seconds["maxlm"][1:], strict=True)]
    medians = {f"{kind}_seconds": round(statistics.median(found[1:]), 2) for kind, found in seconds.items()}
    return figures | medians | {"ratio": round(statistics.median(ratios), 2), "ratios": [round(r, 2) for r in ratios]}


class Recorded(Scorer):
    """Keeps what it is asked, and how it is packed."""

    def score(self, requests, progress=None):
        self.requests = list(requests)
        return super().score(requests)


def shares(tasks, name: str, models: dict) -> dict:
    """Of the tokens that are computed those that are none of a text, and of the slots those that are no target."""
    model = models["maxlm"]
    scorer = model._scorer
    recorded = Recorded(scorer._graphdef, scorer._params, scorer._mesh, rows=scorer._rows, max_length=scorer.max_length)
    model._scorer = recorded
    evaluate_task(tasks, name, model)
    model._scorer = scorer
    found = scorer.texts(recorded.requests)
    batches = list(scorer.batches(found))
    used = sum(len(text.ids) for text in found)
    lengths = sorted((len(text) - 1 for text in map(whole, recorded.requests)), reverse=True)
    lengths = [min(length, scorer.max_length) for length in lengths]
    batch = models["hf"].batch_size
    alone = sum(lengths[start] * len(lengths[start : start + batch]) for start in range(0, len(lengths), batch))
    packed = sum(part.size * part.width for part in batches)
    return {
        "requests": len(recorded.requests),
        "texts": len(found),
        "tokens": used,
        "padding_packed": round(1 - used / packed, 3),
        "padding_alone": round(1 - sum(lengths) / alone, 3),
        "padding_of_width": round(1 - used / (scorer._width(lengths[0]) * len(lengths)), 3),
        "logits_of_tokens": round(sum(part.size * part.targets for part in batches) / packed, 3),
    }


def whole(request: Request) -> tuple[int, ...]:
    return (*request.context, *request.continuation)


if __name__ == "__main__":
    main()
