"""maxlm: pre-training of language models in JAX, from raw text to an evaluated model.

import maxlm
    state = maxlm.train(maxlm.load_config("configs/runs/quickstart.yaml"))
    model, tokenizer = maxlm.load("runs/quickstart")
    logits = model(tokens)                      # int32 [B, S] -> float32 [B, S, vocab_size]
"""

import importlib
from typing import Any

# Imported when they are first used: the command line must answer --help at once.
_EXPORTS = {
    "train": ("maxlm.train.loop", "train"),
    "load": ("maxlm.evaluate.load", "load"),
    "load_config": ("maxlm.config", "load"),
}

__all__ = ["load", "load_config", "train"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'maxlm' has no attribute '{name}'")
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(module), attribute)
