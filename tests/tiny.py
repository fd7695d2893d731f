"""The smallest configurations that have every part of a run."""

from maxlm.config import Config, ModelConfig, validate
from maxlm.data.schedule import Stage

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


# A run on real shards, below the directories `prepared` and `runs`.
RUN = """
name: tiny
model:
  {{vocab_size: 320, num_layers: 2, embed_dim: 32, num_heads: 4, num_kv_heads: 2, head_dim: 8, mlp_dim: 64}}
data:
  seq_len: 32
  sources: {{model: {{path: {prepared}/model}}, prep: {{path: {prepared}/prep}}}}
  mixture: [{{tokens: 5120, weights: {{model: 3, prep: 1}}}}]
  validation: {{model: {{path: {prepared}/model-val}}}}
train: {{batch_tokens: 256}}
mesh: {{data: 1, fsdp: -1}}
remat: {{policy: none}}
optimizer: {{lr: 3.0e-3, eps: 1.0e-5}}
schedule: {{name: wsd, warmup_tokens: 1024, decay_tokens: 1024}}
checkpoint: {{every_minutes: null, every_steps: 4, keep_every_steps: null}}
eval: {{every_steps: 8, sequences: 8}}
logging: {{every_steps: 3, tensorboard: false}}
runs_dir: {runs}
"""

# Stages of two sources: lengths that divide a block of 240 tokens and one that does not, a shape that changes back,
# weights that vanish, an end inside a batch.
STAGES = [
    Stage(16 * 8 * 5 + 16 * 3, {"web": 3, "code": 1}, 8, 16),
    Stage(16 * 8 * 4, {"web": 1}, 8, 16),
    Stage(24 * 4 * 20, {"web": 1, "code": 2}, 4, 24),
    Stage(16 * 8 * 30, {"web": 1, "code": 1}, 8, 16),
]
