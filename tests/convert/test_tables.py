"""Tensors of Hugging Face folders and parameters of ours."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import written_by_transformers

from maxlm.config import ModelConfig
from maxlm.convert.families import TABLES, links, match_names, read_config
from maxlm.convert.layouts import LINEAR, TABLE, VECTOR, Layout, Slices
from maxlm.convert.links import Link
from maxlm.convert.table import build_links

CONFIGS = Path(__file__).parent / "configs"
TENSORS = json.loads((CONFIGS / "tensors.json").read_text())


def model_of(family: str, **changes) -> ModelConfig:
    return read_config(json.loads((CONFIGS / f"{family}.json").read_text()) | changes, "config.json")[1]


@pytest.mark.parametrize("family", TABLES)
def test_tensors_are_those_that_transformers_writes(family: str) -> None:
    found = {link.theirs: list(link.shape) for link in links(family, model_of(family))}
    assert found == TENSORS[family]


@pytest.mark.parametrize("family", TABLES)
def test_transformers_still_writes_so(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    written_by_transformers.write(family, tmp_path)
    assert written_by_transformers.shapes(tmp_path) == TENSORS[family]
    config = json.loads((tmp_path / "config.json").read_text())
    assert read_config(config, "config.json") == (family, model_of(family))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", TABLES)
def test_tensors_travel_there_and_back_to_the_bit(family: str, dtype: type) -> None:
    random = np.random.default_rng(0)
    for link in links(family, model_of(family)):
        # All bits that there are, not-a-numbers among them.
        tensor = np.frombuffer(random.bytes(int(np.prod(link.shape)) * np.dtype(dtype).itemsize), dtype)
        ours = link.split(tensor.reshape(link.shape))
        assert [part.dtype for part in ours] == [dtype] * len(link.ours)
        back = link.join(ours)
        assert back.shape == link.shape and back.tobytes() == tensor.tobytes()


def test_order_is_embeddings_then_layers_then_the_output() -> None:
    names = [link.theirs for link in links("llama", model_of("llama"))]
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert names[0] == "model.embed_tokens.weight" and names[-2:] == ["model.norm.weight", "lm_head.weight"]
    assert layers == sorted(layers) and set(layers) == {0, 1, 2}


def test_layers_stand_in_blocks_and_before_them() -> None:
    """Of eight layers in a pattern of six, two come first: layer 2 begins the blocks (decoder.py)."""
    found = {link.theirs: link.ours[0] for link in links("gemma3_text", model_of("gemma3_text"))}
    name = "model.layers.{}.self_attn.o_proj.weight"
    assert found[name.format(1)] == (("first", "1", "attention", "out"), ())
    assert found[name.format(2)] == (("blocks", "0", "attention", "out"), (0,))
    assert found[name.format(7)] == (("blocks", "5", "attention", "out"), (0,))
    found = {
        link.theirs: link.ours[0]
        for link in links(
            "gemma2",
            model_of(
                "gemma2",
                num_hidden_layers=7,
                layer_types=["sliding_attention", "full_attention"] * 3 + ["sliding_attention"],
            ),
        )
    }
    assert found[name.format(6)] == (("blocks", "1", "attention", "out"), (2,))


def test_experts_are_indexed_behind_the_block() -> None:
    found = {link.theirs: link.ours for link in links("deepseek_v3", model_of("deepseek_v3"))}
    places = found["model.layers.2.mlp.experts.3.up_proj.weight"]
    assert places == ((("blocks", "0", "mlp", "up"), (1, 3)),)
    assert found["model.layers.0.mlp.up_proj.weight"] == ((("first", "0", "mlp", "up"), ()),)


def test_no_output_matrix_where_it_is_the_embedding() -> None:
    assert "lm_head.weight" not in {link.theirs for link in links("mistral", model_of("mistral"))}
    untied = links("gpt2", model_of("gpt2", tie_word_embeddings=False))
    assert untied[-1].theirs == "lm_head.weight" and untied[-1].ours[0].path == ("output",)


def split_of(layout: Layout, tensor: np.ndarray, *shapes: tuple[int, ...], rotated: int = 0) -> list[list]:
    return [part.tolist() for part in layout.split(tensor, Slices(shapes, rotated))]


def test_layouts_by_hand() -> None:
    matrix = np.arange(6).reshape(3, 2)
    assert split_of(TABLE, matrix, (3, 2)) == [matrix.tolist()]
    assert split_of(LINEAR, matrix, (2, 3)) == [[[0, 2, 4], [1, 3, 5]]]
    # Two heads of one query and one key head, three wide each, of a stream of one: rows are heads behind each other.
    fused = np.arange(9).reshape(9, 1)
    assert split_of(Layout(transposed=True, axis=1), fused, (1, 2, 3), (1, 1, 3)) == [
        [[[0, 1, 2], [3, 4, 5]]],
        [[[6, 7, 8]]],
    ]
    assert split_of(VECTOR, np.arange(6), (2, 3)) == [[[0, 1, 2], [3, 4, 5]]]
    # Keys and values of one head after the other: one key dimension, two value dimensions.
    per_head = np.arange(6).reshape(6, 1)
    assert split_of(Layout(transposed=True, axis=2), per_head, (1, 2, 1), (1, 2, 2)) == [
        [[[0], [3]]],
        [[[1, 2], [4, 5]]],
    ]
    # Two dimensions that are kept, then the pairs (x0, y0), (x1, y1).
    rotated = np.array([[10], [11], [0], [100], [1], [101]])
    layout = Layout(transposed=True, axis=1, interleaved=True)
    assert split_of(layout, rotated, (1, 1, 6), rotated=4) == [[[[10, 11, 0, 1, 100, 101]]]]
    # The latent and the rotated key of all heads: the key alone has pairs.
    assert split_of(layout, rotated, (1, 2), (1, 4), rotated=4) == [[[10, 11]], [[0, 1, 100, 101]]]


def test_a_table_that_leaves_out_a_parameter_is_a_fault() -> None:
    table = TABLES["llama"]
    with pytest.raises(RuntimeError, match=r"table of llama does not cover .*blocks\.0\.mlp\.down_bias"):
        build_links(dataclasses.replace(table, mlp=table.mlp[:-1]), model_of("llama"))
    with pytest.raises(RuntimeError, match="table of llama: a tensor or a parameter stands in it twice"):
        build_links(dataclasses.replace(table, mlp=(*table.mlp, table.mlp[0])), model_of("llama"))


def names_of(expected: list[Link]) -> list[str]:
    return [link.theirs for link in expected]


def test_names_with_and_without_prefix() -> None:
    """The released GPT-2 has neither prefix nor output matrix, and masks beside its parameters."""
    model = model_of("gpt2")
    expected = links("gpt2", model)
    bare = [name.removeprefix("transformer.") for name in names_of(expected)]
    masks = ["h.0.attn.bias", "h.1.attn.masked_bias"]
    found = match_names("gpt2", model, expected, [*bare, *masks])
    assert found.found["transformer.wte.weight"] == "wte.weight" and len(found.found) == len(expected)
    assert set(found.left_out) == set(masks) and not found.missing and not found.extra
    found = match_names("gpt2", model, expected, names_of(expected))
    assert found.found == {name: name for name in names_of(expected)}


def test_names_that_are_missing_or_extra() -> None:
    model = model_of("llama")
    expected = links("llama", model)
    found = match_names("llama", model, expected, [*names_of(expected)[1:], "model.layers.3.mlp.up_proj.weight"])
    assert found.missing == ["model.embed_tokens.weight"]
    assert found.extra == ["model.layers.3.mlp.up_proj.weight"]
    # Frequencies of the rotary embedding, in files of the first Llamas.
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert frequencies in match_names("llama", model, expected, [frequencies]).left_out


def test_the_output_matrix_of_tied_embeddings_is_a_copy() -> None:
    model = model_of("mistral")
    expected = links("mistral", model)
    found = match_names("mistral", model, expected, [*names_of(expected), "lm_head.weight"])
    assert found.copies == {"lm_head.weight": "model.embed_tokens.weight"} and not found.extra


def test_layers_for_tokens_further_ahead_are_left_out() -> None:
    model = model_of("deepseek_v3")
    expected = links("deepseek_v3", model)
    ahead = ["model.layers.3.eh_proj.weight", "model.layers.3.mlp.gate.weight", "model.layers.3.embed_tokens.weight"]
    found = match_names("deepseek_v3", model, expected, [*names_of(expected), *ahead])
    assert set(found.left_out) == set(ahead) and not found.extra
    # Without what joins them to the model they are layers that config.json does not count.
    found = match_names("deepseek_v3", model, expected, [*names_of(expected), *ahead[1:]])
    assert found.extra == sorted(ahead[1:]) and not found.left_out
