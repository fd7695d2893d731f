"""config.json and the model's section, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES

from maxlm.config import ModelConfig, read
from maxlm.convert.families import TABLES, read_config, write_config
from maxlm.convert.mathematics import differences
from maxlm.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIGS = Path(__file__).parent / "configs"
# Published configurations as the releases spell them; the factors of Phi's frequencies are stand-ins.
HUB = sorted((CONFIGS / "hub").glob("*.json"))
MODELS = sorted(path.stem for path in (ROOT / "configs/models").glob("*.yaml"))

TINY = {
    "vocab_size": 24,
    "num_layers": 3,
    "embed_dim": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_dim": 20,
    "norm_eps": 1e-6,
    "context_length": 64,
}
WIDE = TINY | {"head_dim": 6}
GEMMA = {
    "activation": "gelu",
    "tie_embeddings": True,
    "scale_embeddings": True,
    "norm_place": "both",
    "norm_offset": True,
}
EXPERTS = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 12, "aux_weight": 0.001}
LATENT = {"kv_rank": 8, "nope_head_dim": 6, "rope_head_dim": 4, "value_head_dim": 5}

# What the files in `configs`, which transformers wrote, say.
EXPECTED: dict[str, dict[str, Any]] = {
    "llama": TINY
    | {
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "rope": {"theta": 5e5, "scaling": {"name": "llama3", "factor": 8.0, "original_length": 32}},
    },
    "mistral": WIDE | {"window": 8, "tie_embeddings": True},
    "mixtral": TINY | {"norm_eps": 1e-5, "rope": {"theta": 1e6}, "moe": EXPERTS | {"mlp_dim": 20}},
    "qwen2": TINY | {"qkv_bias": True, "window": (None, None, 8)},
    "qwen3": WIDE
    | {
        "qk_norm": True,
        "rope": {"theta": 1e6, "scaling": {"name": "dynamic", "factor": 2.0, "original_length": 64}},
    },
    "qwen3_moe": WIDE | {"qk_norm": True, "moe": EXPERTS | {"first_dense": 1}},
    "gemma2": WIDE
    | GEMMA
    | {"query_scale": 5**-0.5, "window": (8, None), "attention_softcap": 50.0, "logit_softcap": 30.0},
    "gemma3_text": WIDE
    | GEMMA
    | {
        "num_layers": 8,
        "query_scale": 1 / 16,
        "qk_norm": True,
        "window": (8, 8, 8, 8, 8, None),
        "rope": {"theta": 1e6, "local_theta": 1e4, "scaling": {"name": "linear", "factor": 8.0}},
    },
    "olmo2": TINY
    | {
        "norm_eps": 1e-5,
        "qk_norm": "all_heads",
        "norm_place": "after",
        "rope": {"scaling": {"name": "yarn", "factor": 4.0, "original_length": 16}},
    },
    "phi3": TINY
    | {
        "embed_dim": 32,
        "head_dim": 8,
        "norm_eps": 1e-5,
        "rope": {
            "fraction": 0.75,
            "scaling": {
                "name": "longrope",
                "short_factors": [1.0, 1.5, 2.0],
                "long_factors": [1.0, 3.0, 5.0],
                "original_length": 16,
                "factor": 4.0,
            },
        },
    },
    "gpt2": TINY
    | {
        "num_layers": 2,
        "num_kv_heads": 4,
        "activation": "gelu",
        "mlp_gated": False,
        "mlp_bias": True,
        "qkv_bias": True,
        "out_bias": True,
        "tie_embeddings": True,
        "learned_positions": 64,
        "norm": "layer",
        "norm_eps": 1e-5,
    },
    "deepseek_v2": TINY
    | {
        "num_kv_heads": 4,
        "head_dim": 10,
        "latent": LATENT,
        "moe": EXPERTS | {"shared_experts": 2, "groups": 2, "normalize": False, "scale": 16.0, "first_dense": 1},
    },
    "deepseek_v3": TINY
    | {
        "num_kv_heads": 4,
        "head_dim": 10,
        "latent": LATENT | {"query_rank": 10},
        "moe": EXPERTS
        | {
            "shared_experts": 1,
            "scores": "sigmoid",
            "groups": 2,
            "group_score": "top2",
            "scale": 2.5,
            "balance": "bias",
            "first_dense": 1,
        },
        "rope": {
            "scaling": {"name": "yarn", "factor": 4.0, "original_length": 16, "mscale": 1.0, "mscale_all_dim": 0.8}
        },
        # 1 / sqrt(10) x (0.1 x 0.8 x ln(4) + 1) ^ 2
        "query_scale": 0.3902588031658729,
    },
}


def file(name: str, **changes: Any) -> dict[str, Any]:
    """A kept config.json with changes; a key whose change is `...` is taken out."""
    values = json.loads((CONFIGS / f"{name}.json").read_text()) | changes
    return {key: value for key, value in values.items() if value is not ...}


def model_file(name: str) -> ModelConfig:
    return ModelConfig.model_validate(read(ROOT / f"configs/models/{name}.yaml")["model"])


@pytest.mark.parametrize("family", TABLES)
def test_what_transformers_writes_is_read(family: str) -> None:
    assert read_config(file(family), "config.json") == (family, ModelConfig.model_validate(EXPECTED[family]))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.json")), ids=lambda path: path.stem)
def test_reading_and_writing_is_stable(path: Path) -> None:
    if path.stem == "tensors":
        pytest.skip("no config.json")
    family, model = read_config(file(str(path.relative_to(CONFIGS).with_suffix("")), quantization_config=None), "here")
    written = write_config(model, family)
    assert written[0] == family
    assert read_config(written[1], "there") == (family, model)
    assert write_config(model, family) == written


# By the longest beginning of its name; Phi-3 and Phi-4 without what sets them apart have the shape of a plainer family.
FAMILY_OF = {
    "ladder": "llama",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2.5": "qwen2",
    "qwen3": "qwen3",
    "qwen3-30b-a3b": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "olmo2": "olmo2",
    "phi3-mini": "mistral",
    "phi4-14b": "llama",
    "phi4-mini": "phi3",
    "deepseek-v2": "deepseek_v2",
    "deepseek-v3": "deepseek_v3",
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_file_has_a_family(name: str) -> None:
    """Its own one, though nothing in the file says so; and the written file computes what the model does."""
    model = model_file(name)
    family, written = write_config(model)
    assert family == FAMILY_OF[max((start for start in FAMILY_OF if name.startswith(start)), key=len)]
    assert not differences(model, read_config(written, "there")[1])


# Whose model files are as trained on short sequences, before their extension, or made of other factors for it.
EXTENDED = {"deepseek-v2-lite", "deepseek-v3", "phi4-mini"}


@pytest.mark.parametrize("name", [path.stem for path in HUB if path.stem in MODELS])
def test_released_files_say_what_the_model_files_say(name: str) -> None:
    """Files in the spelling of the releases, which is the older one, and with the keys that these have besides."""
    released = read_config(file(f"hub/{name}", quantization_config=...), "config.json")[1]
    apart = differences(released, model_file(name))
    extension = {"query_scale", "window", *(field for field in apart if field.startswith("rope.scaling"))}
    assert not set(apart) - (extension if name in EXTENDED else set())


def test_older_spelling_of_scaling_and_windows() -> None:
    llama = read_config(file("hub/llama3.1-8b"), "config.json")[1]
    assert (llama.rope.theta, llama.context_length) == (5e5, 131072)
    assert llama.rope.scaling.model_dump(exclude_defaults=True) == {
        "name": "llama3",
        "factor": 8.0,
        "original_length": 8192,
    }
    gemma = read_config(file("hub/gemma3-1b"), "config.json")[1]
    assert gemma.window == (512,) * 5 + (None,)
    assert (gemma.rope.theta, gemma.rope.local_theta, gemma.rope.scaling) == (1e6, 1e4, None)
    assert read_config(file("hub/gemma2-9b"), "config.json")[1].window == (4096, None)
    phi = read_config(file("hub/phi3-mini-128k"), "config.json")[1]
    assert (phi.rope.scaling.original_length, phi.rope.scaling.factor, phi.rope_dim) == (4096, 32.0, 96)
    scaling = file("hub/phi3-mini-128k")["rope_scaling"] | {"type": "su"}  # as the first release called it
    assert read_config(file("hub/phi3-mini-128k", rope_scaling=scaling), "config.json")[1] == phi
    assert read_config(file("hub/phi4-mini"), "config.json")[1].rope_dim == 96
    deepseek = read_config(file("hub/deepseek-v2-lite"), "config.json")[1]
    assert deepseek.latent.query_rank is None and deepseek.moe.groups == 1
    assert deepseek.query_scale == pytest.approx(192**-0.5 * 1.2608**2, rel=1e-4)  # 0.1 x 0.707 x ln(40) + 1
    assert read_config(file("hub/qwen2.5-7b"), "config.json")[1].window is None


def test_a_scaling_is_read_by_its_keys_whatever_the_family() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32}
    for family in sorted(TABLES.keys() - {"gpt2", "phi3"}):  # which has none, and knows longrope alone
        for key in ("type", "rope_type"):
            values = file(family, rope_parameters=..., rope_theta=5e4, rope_scaling={key: "yarn"} | scaling)
            model = read_config(values, "config.json")[1]
            assert model.rope.theta == 5e4
            assert model.rope.scaling.model_dump(exclude_defaults=True) == {
                "name": "yarn",
                "factor": 4.0,
                "original_length": 32,
            }


@pytest.mark.parametrize("family", TABLES)
def test_renaming_changes_nothing(family: str) -> None:
    renamed = file(family, _name_or_path="somewhere/else-13b", architectures=["AnotherForCausalLM"])
    assert read_config(renamed, "other/config.json") == read_config(file(family), "config.json")


@pytest.mark.parametrize("family", TABLES)
@pytest.mark.parametrize("value", [None, 0, False, "silu"])
def test_an_unknown_key_is_an_error_whatever_its_value(family: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"x/config.json \({family}\): unknown key 'clip_qkv' = {value!r}"):
        read_config(file(family, clip_qkv=value), "x/config.json")


WRONG = [
    ("llama", {"hidden_act": "relu"}, r"hidden_act: found 'relu'; expected 'silu' or"),
    ("llama", {"hidden_act": ["silu"]}, r"hidden_act: found \['silu'\]"),
    ("llama", {"vocab_size": ...}, r"missing key 'vocab_size'"),
    ("llama", {"num_attention_heads": 0}, r"num_attention_heads: found 0; expected an integer, at least 1"),
    ("llama", {"num_attention_heads": "4"}, r"num_attention_heads: found '4'"),
    ("llama", {"hidden_size": 18}, r"hidden_size: found 18; expected a multiple of the 4 heads"),
    ("llama", {"num_key_value_heads": 3}, r"num_kv_heads must divide num_heads, found 3 and 4"),
    ("llama", {"attention_bias": "no"}, r"attention_bias: found 'no'; expected true or false"),
    ("llama", {"is_encoder_decoder": True}, r"is_encoder_decoder: found True; expected False"),
    ("llama", {"rope_parameters": [1]}, r"rope_parameters: found \[1\]; expected keys and values"),
    ("llama", {"rope_parameters": {"rope_type": "mrope"}}, r"rope_type: found 'mrope'; expected default or linear"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, r"rotary embedding: factor: found None; expected a value"),
    ("llama", {"rope_parameters": {"rope_type": "default", "factor": 2.0}}, r"rotary embedding: unknown key 'factor'"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, r"same in rope_type"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"expected what rope_parameters says"),
    ("llama", {"rope_theta": 1e4}, r"rope_theta: found 500000.0; expected 10000.0 as outside"),
    ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor: found 0.5; expected 1.0, the whole head"),
    ("qwen3", {"max_position_embeddings": ...}, r"max_position_embeddings: found None; expected the longest sequence"),
    ("phi3", {"original_max_position_embeddings": 32}, r"original_max_position_embeddings: found 16; expected 32"),
    ("phi3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, r"found 'yarn'; expected default or longrope"),
    ("phi3", {"lm_head_bias": True}, r"lm_head_bias: found True; expected False"),
    ("gemma2", {"use_bidirectional_attention": True}, r"use_bidirectional_attention: found True"),
    ("gemma2", {"hidden_act": "gelu"}, r"hidden_act: found 'gelu'; expected 'gelu', which follows"),
    ("gemma2", {"sliding_window_size": 7}, r"sliding_window_size: found 7; expected 8"),
    ("gemma2", {"layer_types": ["full_attention"]}, r"layer_types: found \['full_attention'\]; expected .* 3 layers"),
    ("gemma2", {"sliding_window": None}, r"sliding_window: found None; expected a number of tokens"),
    ("gemma2", {"query_pre_attn_scalar": 0}, r"query_pre_attn_scalar: found 0; expected a number above zero"),
    (
        "gemma3_text",
        {"layer_types": ..., "sliding_window_pattern": 2},
        r"'_sliding_window_pattern': 6.*the same number",
    ),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping: found 50.0; expected None"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx: found True"),
    ("gpt2", {"n_ctx": 32}, r"n_ctx: found 32; expected 64"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers: found \[1\]; expected dense layers at the beginning"),
    ("qwen3_moe", {"use_sliding_window": True, "max_window_layers": 2}, r"max_window_layers: found 2; expected 0"),
    ("deepseek_v2", {"norm_topk_prob": True}, r"norm_topk_prob: found True; expected False"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, r"topk_method: found 'noaux_tc'; expected 'greedy' or"),
    ("deepseek_v2", {"n_group": None}, r"n_group and topk_group: found \(None, 1\)"),
    ("deepseek_v3", {"attention_bias": True}, r"attention_bias: found True; expected False"),
    ("deepseek_v3", {"scoring_func": "softmax"}, r"scoring_func: found 'softmax'; expected 'sigmoid'"),
    ("deepseek_v3", {"rope_interleave": False}, r"rope_interleave: found False; expected True"),
    ("deepseek_v3", {"head_dim": 10}, r"head_dim: found 10; expected 4, which follows from other keys"),
    ("deepseek_v3", {"num_key_value_heads": 2}, r"num_kv_heads must be num_heads with latent"),
    ("qwen3_moe", {"num_experts": 8}, r"num_local_experts: found 4; expected 8 as num_experts says"),
    ("llama", {"rope_interleaved": True}, r"rope_interleaved: found True; expected False"),
    ("llama", {"quantization_config": {"quant_method": "fp8"}}, r"quantization_config: found .*'fp8'.*bfloat16"),
    (
        "llama",
        {"model_type": "llama4"},
        r"model_type: found 'llama4'; expected a model of text .*llama, mistral, .*deepseek_v3",
    ),
    (
        "llama",
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
        r"text_config is of 'gemma3_text'",
    ),
]


@pytest.mark.parametrize(("family", "changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_honoured_is_an_error(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(file(family, **changes), "config.json")


@pytest.mark.parametrize("family", TABLES)
def test_no_value_of_any_key_is_a_fault_of_the_program(family: str) -> None:
    values = file(family)
    odd = [..., None, True, 0, -1, 2.5, "odd", [], [None], {}, {"full_attention": None}, float("nan")]
    for key in values:
        for value in odd:
            try:
                read_config(file(family, **{key: value}), "config.json")
            except ConfigError as error:
                assert str(error).startswith("config.json"), error
    for key in values.get("rope_parameters", {}):
        for value in odd[1:]:
            try:
                read_config(file(family, rope_parameters=values["rope_parameters"] | {key: value}), "config.json")
            except ConfigError as error:
                assert str(error).startswith("config.json"), error


def test_windows_that_do_not_repeat_are_listed_whole() -> None:
    family, model = read_config(file("qwen2", num_hidden_layers=7, layer_types=..., max_window_layers=5), "here")
    assert model.window == (None,) * 5 + (8, 8)
    assert read_config(write_config(model, family)[1], "there")[1] == model
    # A list goes before the number, as in transformers, and a pattern may end anywhere.
    types = [kind + "_attention" for kind in ("full", "sliding", "sliding", "full", "sliding", "sliding", "full")]
    assert read_config(file("qwen2", num_hidden_layers=7, layer_types=types), "here")[1].window == (None, 8, 8)


def test_experts_in_every_other_layer() -> None:
    model = read_config(file("qwen3_moe", num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[]), "here")[1]
    assert (model.moe.first_dense, model.moe.every) == (0, 2)
    model = read_config(file("qwen3_moe", num_hidden_layers=5, mlp_only_layers=[0, 1, 3]), "here")[1]
    assert [model.has_experts(layer) for layer in range(5)] == [False, False, True, False, True]
    assert write_config(model)[1]["mlp_only_layers"] == [0, 1, 3]


def inexpressible(**changes: Any) -> pytest.ExceptionInfo[ConfigError]:
    with pytest.raises(ConfigError) as caught:
        write_config(ModelConfig.model_validate(TINY | changes))
    return caught


def test_a_model_that_no_family_expresses_is_an_error_that_says_why() -> None:
    assert inexpressible(norm_place="after").match(
        "no family can express the model; the nearest, llama, cannot express norm_place = 'after'"
    )
    # A bias on the choice of experts has no place in the files of other families.
    assert inexpressible(moe=EXPERTS | {"balance": "bias"}).match("mixtral, cannot express moe.balance = 'bias'")
    assert inexpressible(window=(4, 8)).match(r"cannot express window = \(4, 8\)")
    with pytest.raises(ConfigError, match="mistral cannot express qkv_bias = True"):
        write_config(ModelConfig.model_validate(TINY | {"qkv_bias": True}), "mistral")
    with pytest.raises(ConfigError, match="llama cannot express moe"):
        write_config(ModelConfig.model_validate(EXPECTED["mixtral"]), "llama")
    with pytest.raises(ConfigError, match="family: found 'bloom'; expected one of llama"):
        write_config(ModelConfig.model_validate(TINY), "bloom")


@pytest.mark.parametrize("name", FAMILIES)
def test_any_model_is_written_whole_or_not_at_all(name: str) -> None:
    model = ModelConfig.model_validate(TINY | FAMILIES[name])
    try:
        written = write_config(model)[1]
    except ConfigError as error:
        assert "cannot express" in str(error)
    else:
        assert not differences(model, read_config(written, "there")[1])


def test_what_training_alone_reads_is_no_reason_against_a_family() -> None:
    moe = EXPERTS | {"balance": None, "z_weight": 1e-3, "mlp_dim": 20}
    model = ModelConfig.model_validate(TINY | {"moe": moe, "mlp_dim": 999, "init_std": 0.01})
    family, written = write_config(model)
    assert (family, written["intermediate_size"], written["initializer_range"]) == ("mixtral", 20, 0.01)


@pytest.mark.parametrize("family", TABLES)
def test_transformers_reads_what_is_written(family: str) -> None:
    """In the older spelling, which readers of version 4 need: its own class completes it to the same model."""
    model = read_config(file(family), "config.json")[1]
    assert read_config(completed(write_config(model, family)[1]), "there") == (family, model)


@pytest.mark.parametrize("name", [path.stem for path in HUB])
def test_transformers_reads_released_files_alike(name: str) -> None:
    values = file(f"hub/{name}", quantization_config=...)
    assert read_config(completed(values), "there") == read_config(values, "here")


@pytest.mark.parametrize("family", TABLES)
def test_what_a_file_leaves_out_is_what_transformers_takes(family: str) -> None:
    for key in file(family).keys() - {"model_type"}:
        values = file(family, **{key: ...})
        try:
            model = read_config(values, "here")[1]
        except ConfigError:
            continue  # sizes, and what the other keys need
        assert not differences(model, read_config(completed(values), "there")[1]), key


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json as the family's class in transformers reads and would write it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
    return json.loads(config.to_json_string(use_diff=False))
