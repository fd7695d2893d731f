from pathlib import Path

import pytest

from maxlm.report.metrics import MetricsWriter

CONFIG = "name: demo\nmodel: {num_layers: 2}\noptimizer: {name: adamw, lr: 0.001}\n"


def metrics_line(step: int) -> dict:
    """A line as training logs it, different at every step."""
    return {
        "step": step,
        "tokens": step * 4096,
        "loss": 9.0 / (1 + step / 100),
        "grad_norm": 1.0 + 1 / (1 + step),
        "param_norm": 100.0 + step,
        "update_norm": 0.1,
        "learning_rate": 1e-3,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.01,
        "tokens_per_second": 8192.0,
        "mfu": None,
        "hbm_gib": None,
        "skipped": 0,
        "loss_by_source": {"web": 9.0 / (1 + step / 90), "code": 9.0 / (1 + step / 120)},
        "tokens_by_source": {"web": 30000, "code": 10000},
        "target_tokens": 40000,
    }


@pytest.fixture
def make_run(tmp_path):
    """Writes a run directory: make_run(name, steps, evals=..., events=..., config=...)."""

    def make(name: str = "demo", steps=(10, 20, 30), evals=(), events=(), config: str = CONFIG) -> Path:
        run_dir = tmp_path / name
        with MetricsWriter(run_dir, tensorboard=False, resume_step=None) as metrics:
            metrics.log_event("started", 0, parameters=1_234_567, devices=4, device_kind="chip")
            for step in steps:
                metrics.log(metrics_line(step))
            for line in evals:
                metrics.log_eval(line)
            for kind, step, fields in events:
                metrics.log_event(kind, step, **fields)
        (run_dir / "config.yaml").write_text(config)
        return run_dir

    return make
