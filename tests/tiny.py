"""The smallest configurations that have every part of a run."""

from maxlm.config import Config, ModelConfig, validate

MODEL = {
    "vocab_size": 64,
    "num_layers": 2,
    "embed_dim": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_dim": 32,
}


def model_config(**changes: object) -> ModelConfig:
    return ModelConfig(**MODEL | changes)


def run_config(**sections: dict) -> Config:
    """A run of steps of 8 examples of 16 tokens; keyword arguments change single keys of sections."""
    values = {
        "name": "tiny",
        "model": MODEL,
        "data": {
            "seq_len": 16,
            "sources": {"web": {"path": "web"}},
            "mixture": [{"tokens": 128 * 100, "weights": {"web": 1}}],
        },
        "train": {"batch_tokens": 128},
    }
    for name, changes in sections.items():
        values[name] = values.get(name, {}) | changes
    return validate(values, Config, "tiny")
