"""What is to be planned: a run, or a model alone, on some hardware.

    config, system = request("configs/models/llama3-8b.yaml", ["train.accumulate=4"], "v5p-128")

A file that holds a model alone is completed: one sequence of `SEQ_LEN` tokens per device and microbatch, and as many
tokens as the model's size calls for. What a file states is kept. Data need not exist.
"""

import math
from pathlib import Path
from typing import Any

from maxlm.config import Config, ModelConfig, read, validate
from maxlm.errors import ConfigError
from maxlm.model.counts import parameter_count
from maxlm.parallel.hardware import System, system
from maxlm.plan.textbook import optimum_tokens

SEQ_LEN = 4096


def request(path: str | Path, overrides: list[str], hardware: str | None = None) -> tuple[Config, System]:
    """The configuration and the hardware it is planned for; `hardware` stands in for the file's `hardware.name`."""
    values = read(path, [*overrides, *([f"hardware.name={hardware}"] if hardware else [])])
    name = _at(values, "hardware", "name")
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}: no hardware to plan for; give --hardware NAME or hardware.name, for example v5p-128, v6e-64, "
            "h100x8"
        )
    found = system(name)
    return validate(completed(values, found.num_devices, str(path)), Config, str(path)), found


def completed(values: dict[str, Any], num_devices: int, where: str) -> dict[str, Any]:
    """The values with what a run has and a model alone lacks; values of a wrong kind are left to validation."""
    sections = {name: values.get(name) or {} for name in ("data", "train", "mesh", "pipeline")}
    if not all(isinstance(section, dict) for section in sections.values()):
        return values
    values, data, train = {"name": Path(where).stem} | values, dict(sections["data"]), dict(sections["train"])
    model = validate(values.get("model"), ModelConfig, f"{where}: model") if "model" in values else None
    if model is None:
        return values
    data.setdefault("seq_len", min(SEQ_LEN, model.learned_positions or SEQ_LEN))
    data.setdefault("sources", {"text": {"path": "prepared/text"}})
    if "mixture" not in data:
        tokens = round(optimum_tokens(parameter_count(model)))
        data["mixture"] = [{"tokens": tokens, "weights": dict.fromkeys(data["sources"], 1)}]
    counts = sections["train"].get("accumulate", 1), sections["pipeline"].get("microbatches", 1)
    counts += sections["mesh"].get("slices", 1), data["seq_len"], num_devices
    if "batch_tokens" not in train and all(isinstance(count, int) for count in counts):
        train["batch_tokens"] = math.prod(counts)
    return values | {"data": data, "train": train}


def _at(values: dict[str, Any], section: str, key: str) -> Any:
    found = values.get(section)
    return found.get(key) if isinstance(found, dict) else None
