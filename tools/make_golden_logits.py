"""Writes tests/convert/golden: what `transformers` makes of tiny models, one folder per model of golden_models.py.

    python tools/make_golden_logits.py [NAME ...]      # where torch and transformers are installed

A folder holds config.json as `transformers` writes it, and logits.npz:
    names, shapes   of the tensors in its safetensors file; tests draw their values by hashed.py
    ragged, long, right, left   logits, float32, of the kept positions of these documents (golden_inputs.py)
    versions        of torch and transformers
and for some models step.npz (golden_steps.py). Weights and products are float64; transformers computes its norms,
softmaxes, routers and rotary angles in float32 all the same. Each document is computed alone: a row of a float64 batch
that is padded at the left has tokens which see nothing, and they are NaN. In float32 the batches are padded as the
kinds say; their distance from the float64 logits is printed, and is how far apart two right implementations are.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from golden_models import MODELS
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "convert"))

import golden_inputs  # noqa: E402
import hashed  # noqa: E402
from golden_steps import STEPS, step  # noqa: E402

GOLDEN = ROOT / "tests" / "convert" / "golden"
# Rotations depend on the longest row of a batch there, on the document here: no padded batches are asked for.
BY_LENGTH = ("dynamic", "longrope")


def write_folder(settings: dict, folder: Path, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """A model with hashed weights as `transformers` saves it; names and shapes of its tensors."""
    config = AutoConfig.for_model(**settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    with safe_open(file, "np") as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}
    norm_mean = hashed.norm_mean(settings["model_type"])
    save_file(
        {name: hashed.tensor(seed, name, shape, norm_mean) for name, shape in shapes.items()}, file, {"format": "pt"}
    )
    return shapes


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **eager)
    assert not any(report.values()), report
    return model.eval()


def batch_logits(model: PreTrainedModel, rows: list[np.ndarray], left: bool = False) -> list[np.ndarray]:
    """Logits [S, V] of the real tokens of every row."""
    batch = golden_inputs.padded(rows, max(map(len, rows)), [left] * len(rows))
    tokens, mask, positions = (torch.tensor(array, dtype=torch.long) for array in batch[:3])
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits.numpy()
    return [row[start : start + len(own)] for row, start, own in zip(found, batch.starts, rows, strict=True)]


def kept_logits(folder: Path, dtype: torch.dtype, padded: bool) -> dict[str, np.ndarray]:
    """By kind the logits of the kept positions, of documents in padded batches or each alone."""
    model, kept = load(folder, dtype), {}
    every = golden_inputs.documents(model.config.vocab_size)
    for kind in golden_inputs.LENGTHS:
        own = [document for document in every if document.kind == kind]
        rows = [document.tokens for document in own]
        if padded and kind in golden_inputs.PADDED:
            logits = batch_logits(model, rows, kind == "left")
        else:
            # A model of its own for each: one whose frequencies depend on the length keeps those of longer rows.
            logits = [batch_logits(load(folder, dtype), [row])[0] for row in rows]
        kept[kind] = np.concatenate([found[document.kept] for found, document in zip(logits, own, strict=True)])
    return kept


def make(name: str) -> str:
    """Writes one folder; the line that tells of it."""
    folder = GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        shapes = write_folder(MODELS[name], Path(made))
        kept = kept_logits(Path(made), torch.float64, padded=False)
        by_length = MODELS[name].get("rope_parameters", {}).get("rope_type") in BY_LENGTH
        single = kept_logits(Path(made), torch.float32, padded=not by_length)
        (folder / "config.json").write_bytes((Path(made) / "config.json").read_bytes())
        if name in STEPS:
            np.savez_compressed(folder / "step.npz", **step(load(Path(made), torch.float64)))
    largest = np.max([golden_inputs.difference(single[kind], kept[kind]) for kind in kept])
    assert largest < 1e-5, f"{name}: float32 and float64 are {largest} apart"
    np.savez_compressed(
        folder / "logits.npz",
        names=np.array(list(shapes)),
        shapes=np.array([json.dumps(shape) for shape in shapes.values()]),
        versions=np.array([torch.__version__, transformers.__version__]),
        **{kind: logits.astype(np.float32) for kind, logits in kept.items()},
    )
    size = sum(file.stat().st_size for file in folder.iterdir())
    return f"{name:18} {len(shapes):4} tensors, {size / 1000:5.1f} kB, float32 {largest:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS), help="models of golden_models.py; default: all")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in parser.parse_args().names:
        print(make(name))


if __name__ == "__main__":
    main()
