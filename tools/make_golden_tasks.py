"""Write what lm-eval's own `hf` model makes of the tests' tasks, for tests that have neither torch nor transformers.

    python tools/make_golden_tasks.py        # needs lm-eval, torch and transformers

writes tests/evaluate/golden/tasks.json: figures of every task, and what was answered to each of its requests.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in ("", "convert", "evaluate"))]

PACKAGES = ("lm_eval", "torch", "transformers")


def main() -> None:
    import golden_tasks

    found = {"versions": {name: version(name) for name in PACKAGES}}
    with tempfile.TemporaryDirectory() as folder:
        for name, bos in (("begun", True), ("plain", False)):
            found[name] = measured(golden_tasks.write_folder(Path(folder) / name, bos), chat=bos)
    golden_tasks.GOLDEN.parent.mkdir(exist_ok=True)
    golden_tasks.GOLDEN.write_text(json.dumps(found) + "\n")


def measured(folder: Path, chat: bool) -> dict:
    """By task, and by task with the chat template, its figures and answers."""
    import golden_tasks

    from maxlm.evaluate.tasks import Wanted, evaluate_task, open_tasks

    opened = open_tasks(Wanted(golden_tasks.NAMES, str(golden_tasks.TASKS)))
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)
    found = {}
    asked = [(name, opened) for name in golden_tasks.NAMES]
    if chat:
        chatting = open_tasks(Wanted(golden_tasks.CHAT, str(golden_tasks.TASKS), chat=True))
        asked += [(name, chatting) for name in golden_tasks.CHAT]
    for name, tasks in asked:
        figures = evaluate_task(tasks, name, model)
        key = f"{name} chat" if tasks.wanted.chat else name
        found[key] = {"metrics": figures["metrics"], "answers": golden_tasks.responses(tasks.tasks[name])}
    return found


if __name__ == "__main__":
    main()
