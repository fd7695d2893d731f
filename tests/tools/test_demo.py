"""The demo from text to sample, on less text and with a smaller model than its own."""

import json
from pathlib import Path

import demo
import jax

import maxlm
from maxlm.train import loop

ROOT = Path(demo.__file__).parent.parent

PREP = """
extends: [{root}/configs/prep/quickstart.yaml]
output: {folder}/prepared
workers: 1
validation: {{fraction: 0.2}}
tokenizer: {{vocab_size: 320}}
"""
RUN = """
extends: [{root}/configs/runs/quickstart.yaml]
model: {{vocab_size: 320, num_layers: 2, embed_dim: 32, head_dim: 8, mlp_dim: 64}}
data:
  seq_len: 64
  sources: {{stdlib: {{path: {folder}/prepared/stdlib}}}}
  validation: {{stdlib: {{path: {folder}/prepared/stdlib-val}}}}
train: {{batch_tokens: 256, total_tokens: 1024}}
schedule: {{warmup_tokens: 256, decay_tokens: 256}}
eval: {{sequences: 4}}
logging: {{tensorboard: false}}
runs_dir: {folder}/runs
"""


def test_the_demo_comes_to_its_end_and_does_nothing_again(tmp_path, monkeypatch, capsys):
    for name, text in (("PREP", PREP), ("RUN", RUN)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.format(root=ROOT, folder=tmp_path))
        monkeypatch.setattr(demo, name, str(path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(ROOT / "maxlm" / "report"))
    monkeypatch.setattr(maxlm, "train", lambda config: loop.train(config, jax.devices()[:1]))
    monkeypatch.chdir(ROOT)

    demo.main()
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "runs/quickstart/demo.json").read_text())
    assert found["step"] == "4" and 0 < found["gzip -9"] < 8 and 0 < found["xz -9"] < 8
    assert [line for line in err.splitlines() if line.startswith("==")] == [
        "== 1/4  prepare: text -> tokenizer and shards",
        "== 2/4  train: 2 layers, 1,024 tokens",
        "== 3/4  evaluate on the held-out files",
        "== 4/4  sample",
    ]
    for shown in (f"{found['bits_per_byte']:.3f}", f"{found['gzip -9']:.3f}", "sample after 'def '", "report.html"):
        assert shown in out

    demo.main()
    again, err = capsys.readouterr()
    assert again == out and "is finished: step 4" in err
    assert json.loads((tmp_path / "runs/quickstart/demo.json").read_text()) == found
