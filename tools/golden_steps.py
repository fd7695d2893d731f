"""One optimizer step of a golden model in torch: the gradients, and the loss before and after."""

import tempfile
from pathlib import Path

import golden_inputs
import hashed
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import PreTrainedModel

# One model or more for every mechanism with a gradient of its own.
STEPS = (
    "gpt2",  # learned positions, LayerNorm, biases, a plain MLP, tied embeddings
    "llama-llama3",  # RoPE whose frequencies are scaled
    "qwen3_moe",  # norms of heads, experts chosen and weighed by a softmax
    "gemma2",  # both soft caps, windows, norms on both sides, scales less one, embeddings scaled
    "gemma3_text",  # two thetas, norms of heads with scales less one
    "olmo2",  # norms of all heads together, and of what layers add
    "phi3-longrope",  # partial rotation, fused matrices, factors by length
    "deepseek_v2",  # latent attention, groups chosen by their best expert
    "deepseek_v3",  # the same with yarn, sigmoid scores, groups by two experts, and a bias without gradient
)


def step(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy over the batch of golden_inputs, in float64:

    names; norms [T] of the tensors' gradients, and their products [T, 2] with two directions (hashed.direction); the
    loss before, after one step of SGD and after one of AdamW (`golden_inputs.RATES`). Tensors are those of a file.
    """
    loss = _loss(model)
    loss.backward()
    gradients = _as_saved(model)
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = [loss.item()]
    for optimizer in (_sgd, _adamw):
        optimizer(model).step()
        with torch.no_grad():
            losses.append(_loss(model).item())
            for name, value in model.named_parameters():
                value.copy_(initial[name])
    products = [
        [np.sum(value * hashed.direction(number, name, value.shape)) for number in range(2)]
        for name, value in gradients.items()
    ]
    norms = [np.sqrt(np.sum(value**2)) for value in gradients.values()]
    return {
        "names": np.array(list(gradients)),
        "norms": np.array(norms),
        "products": np.array(products),
        "losses": np.array(losses),
    }


def _loss(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.tensor(golden_inputs.training_tokens(model.config.vocab_size), dtype=torch.long)
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _as_saved(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The gradients under the names and in the shapes that the parameters have in a file."""
    values = {name: parameter.data for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.grad
    buffers = {name for name, _ in model.named_buffers()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = load_file(Path(folder) / "model.safetensors")
    for name, parameter in model.named_parameters():
        parameter.data = values[name]
    return {name: value for name, value in sorted(saved.items()) if name not in buffers}


def _sgd(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=golden_inputs.RATES["sgd"])


def _adamw(model: PreTrainedModel) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if _decays(name, p) == decay],
            "weight_decay": 0.1 * decay,
        }
        for decay in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=golden_inputs.RATES["adamw"], betas=(0.9, 0.95), eps=1e-8)


def _decays(name: str, parameter: torch.Tensor) -> bool:
    """Tables, norms and biases do not."""
    return parameter.ndim > 1 and not any(table in name for table in ("embed", ".wte", ".wpe"))
