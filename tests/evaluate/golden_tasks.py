"""A model whose weights follow from their names, and a tokenizer of bytes: what the golden results of tasks are of."""

import json
from pathlib import Path
from typing import Any

import hashed
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from maxlm.convert.families import links, read_config

TASKS = Path(__file__).parent / "tasks"
GOLDEN = Path(__file__).parent / "golden" / "tasks.json"
NAMES = ["completions", "letters", "cloze", "prose", "answers"]
CHAT = ["letters", "answers"]  # asked by the chat template as well
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}
{{ '<|' + message.role + '|>' + message.content | trim + eos_token }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    # Less than the longest questions and documents have, so that some are cut and some read in windows.
    "max_position_embeddings": 192,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def write_folder(folder: Path, bos: bool = True) -> Path:
    """The model as a Hugging Face folder; without `bos` its tokenizer puts none in front of a text."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    wanted = links("llama", read_config(CONFIG, "config.json")[1])
    tensors = {link.theirs: hashed.tensor(0, link.theirs, link.shape) for link in wanted}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate([*SPECIAL, *alphabet])}
    library = Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    if bos:
        library.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    library.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def responses(task: Any) -> list[Any]:
    """What the model answered to the requests of a task, in their order."""
    found = [instance.resps[0] for instance in task.instances]
    return [[float(answer[0]), bool(answer[1])] if isinstance(answer, tuple) else answer for answer in found]
