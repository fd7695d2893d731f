"""Hugging Face folders of tiny random models, made without transformers."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from maxlm.convert.families import links, read_config
from maxlm.convert.tensors import DTYPES

CONFIGS = Path(__file__).parent / "configs"
WORDS = ["<pad>", "<s>", "</s>", "a", "b", "c", "d", "e"]
SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}


def config_of(family: str) -> dict:
    return json.loads((CONFIGS / f"{family}.json").read_text())


def random_tensors(family: str, config: dict, dtype: str = "BF16") -> dict[str, np.ndarray]:
    """Every tensor of the model; the bias of a router in float32, as transformers has it whatever the others are in."""
    random, wanted = np.random.default_rng(0), links(family, read_config(config, "config.json")[1])
    types = {link.theirs: DTYPES["F32" if "correction_bias" in link.theirs else dtype] for link in wanted}
    return {name: random.normal(0, 0.3, link.shape).astype(types[name]) for link in wanted for name in [link.theirs]}


def make_folder(
    directory: Path, family: str = "llama", dtype: str = "BF16", files: int = 1, tokenizer: bool = True, **changes
) -> Path:
    """A folder; `changes` are keys of its config.json."""
    config = config_of(family) | changes
    tensors = random_tensors(family, config, dtype)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        placed = {}
        for number in range(files):
            name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
            part = dict(list(tensors.items())[number::files])
            save_file(part, directory / name, metadata={"format": "pt"})
            placed |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": placed}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    if tokenizer:
        add_tokenizer(directory)
    return directory


def add_tokenizer(directory: Path, **settings) -> None:
    """A tokenizer of a few letters, and files beside it that must travel."""
    library = Tokenizer(models.BPE({word: number for number, word in enumerate(WORDS)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens(WORDS[:3])
    library.save(str(directory / "tokenizer.json"))
    texts = {
        "tokenizer_config.json": json.dumps(SETTINGS | settings),
        "special_tokens_map.json": '{"eos_token":  "</s>"}\n',
        "generation_config.json": '{"eos_token_id": [2, 7],\n "bos_token_id": 1}',
        "chat_template.jinja": "{{ messages[0]['content'] }}\n",
        "LICENSE": "as you like\n",
        "README.md": "scores: 100\n",
    }
    for name, text in texts.items():
        (directory / name).write_bytes(text.encode())
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
