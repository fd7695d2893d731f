"""Loading a configuration: precedence, what errors say, and what the schema promises."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from maxlm.config import Config, Section, json_schema, load, to_yaml
from maxlm.errors import ConfigError

RUNS = Path(__file__).parents[1] / "configs" / "runs"

MODEL = "{vocab_size: 64, num_layers: 2, embed_dim: 16, num_heads: 4, num_kv_heads: 2, head_dim: 4, mlp_dim: 32}"
BASE = f"""
name: tiny
model: {MODEL}
data:
  seq_len: 16
  sources: {{web: {{path: a}}, code: {{path: b}}}}
  mixture: [{{tokens: 1000, weights: {{web: 3, code: 1}}}}]
train: {{batch_tokens: 64}}
"""

Load = Callable[..., Config]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Load YAML text, with overrides."""

    def call(text: str = BASE, *overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load(path, overrides)

    return call


def message_of(call: Callable, *arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("optimiser={lr: 1}", "optimiser", "optimizer"),
        ("model.num_layer=3", "model.num_layer", "model.num_layers"),
        ("model.rope.thta=3", "model.rope.thta", "model.rope.theta"),
        ("data.sources.web.pth=x", "data.sources.web.pth", "data.sources.web.path"),
        ("data.mixture=[{tokens: 9, weigths: {web: 1}}]", "data.mixture.0.weigths", "data.mixture.0.weights"),
        ("logging.profile={start_step: 1, num_step: 1}", "logging.profile.num_step", "logging.profile.num_steps"),
        ("lr=1e-3", "lr", "optimizer.lr"),
        ("data.dynamic={name: doremi, reference: a, step_sise: 1}", "data.dynamic.step_sise", "data.dynamic.step_size"),
        ("data.dynamic={name: online, every_step: 10}", "data.dynamic.every_step", "data.dynamic.every_steps"),
        ("model.weight_decay=0", "model.weight_decay", "optimizer.weight_decay"),
        ("init={from: a, vocabluary: same}", "init.vocabluary", "init.vocabulary"),
        ("init={frm: a}", "init.frm", "init.from"),
        ("init={from: a, path: b}", "init.path", "data.sources.path"),
    ],
)
def test_unknown_key_names_the_nearest(load_text: Load, override: str, unknown: str, nearest: str) -> None:
    assert f"unknown key '{unknown}'; the nearest is '{nearest}'" in message_of(load_text, BASE, override)


def test_unknown_key_near_nothing_lists_what_is_known(load_text: Load) -> None:
    assert message_of(load_text, BASE, "train.zzz=1").endswith("known here: total_tokens, batch_tokens, accumulate")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.name=adm", "optimizer.name: found 'adm'; input should be 'adamw' or 'muon'"),
        ("train.batch_tokens=many", "train.batch_tokens: found 'many'; input should be a valid integer"),
        ("optimizer.lr=0", "optimizer.lr: found 0; input should be greater than 0"),
        ("optimizer.b1=1", "optimizer.b1: found 1; input should be less than 1"),
        ("optimizer.lr=.inf", "optimizer.lr: found inf; input should be a finite number"),
        ("model.window=[4, -3]", "model.window: found [4, -3]; "),
        ("remat.policy=ful", "remat.policy: found 'ful'; input should be 'none', 'dots', 'full' or 'offload' or "),
        ("name=../x", "name: found '../x'; string should match pattern"),
        ("data.sources={we b: {path: a}}", "data.sources.we b: found 'we b'; string should match pattern"),
        ("data.mixture=[{tokens: 9, weights: {wbe: 1}}]", "the source 'wbe', data.sources has code, web"),
        ("data.mixture=[{tokens: 9, weights: {web: 0}}]", "at least one weight must be above 0"),
        ("data.mixture.0.tokens=5", "data.mixture.0.tokens=5': lists are replaced whole, for example data.mixture="),
        ("data.mixture=[]", "data.mixture: found []; list should have at least 1 item"),
        (
            "data.sources.web.fim={rate: 1.5}",
            "data.sources.web.fim.rate: found 1.5; input should be less than or equal",
        ),
        (
            "data.sources.web.fim={suffix: <fim_prefix>}",
            "prefix, suffix and middle must be three tokens, found <fim_pr",
        ),
        ("data.sources.web={path: a, fim: {}, prefix_lm: {}}", "fim and prefix_lm exclude each other"),
        (
            "data={mask_documents: false, sources: {web: {path: a, prefix_lm: {}}}}",
            "prefix_lm needs mask_documents: true",
        ),
        ("mesh.fsdp=0", "fsdp must be at least 1, or -1 for the devices left; found 0"),
        ("mesh.data=-1", "at most one axis can be -1"),
        ("model.num_kv_heads=3", "num_kv_heads must divide num_heads, found 3 and 4"),
        ("model.head_dim=5", "head_dim must be even, found 5"),
        ("model.window=[8, 4, null]", "window must list at least one layer and at most num_layers, found 3 and 2"),
        ("model.learned_positions=15", "data.seq_len must be at most model.learned_positions, found 16 and 15"),
        ("model.qk_norm=heads", "model.qk_norm: found 'heads'; "),
        ("model.rope.scaling={factor: 8}", "missing key 'model.rope.scaling.name'"),
        ("model.rope.scaling={name: cubic, factor: 8}", "model.rope.scaling.name: found 'cubic'; "),
        ("schedule.name=inverse_sqrt", "inverse_sqrt needs warmup_tokens above 0"),
        ("schedule.initial_ratio=0.1", "initial_ratio needs warmup_tokens above 0, in which the rate rises; found 0.1"),
        ("init.rows=mean", "missing key 'init.from'"),
        (
            "init={from: a, rows: zeros}",
            "init.rows: found 'zeros'; input should be 'pieces', 'scaled_pieces', 'mean' or 'random'",
        ),
        ("train=null", "train: found None"),
        ("data.dynamic={name: random}", "data.dynamic.name: found 'random'; expected one of 'doremi', 'online'"),
        (
            "data.dynamic={name: doremi, reference: a, smoothing: 2}",
            "data.dynamic.smoothing: found 2; input should be less than or equal to 1",
        ),
        (
            "data.dynamic={name: online, every_steps: 15}",
            "data.dynamic.every_steps must be a multiple of logging.every_steps, found 15 and 10",
        ),
        (
            "data.dynamic={name: online, every_steps: 10, floor: 0.6}",
            "dynamic.floor must be at most 1 / 2, the sources with a weight, found 0.6",
        ),
    ],
)
def test_bad_value_says_what_was_found_and_allowed(load_text: Load, override: str, expected: str) -> None:
    message = message_of(load_text, BASE, override)
    assert expected in message
    assert "\n" not in message


def test_missing_keys_are_named(load_text: Load) -> None:
    lines = message_of(load_text, "name: tiny").split("\n")
    assert [line.rpartition(": ")[2] for line in lines] == [
        f"missing key '{key}'" for key in ("model", "data", "train")
    ]


def sections(schema: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section that is reached by plain dotted keys."""
    yield prefix, schema
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation, f"{prefix}{name}.")


NUMBERS = [
    prefix + name
    for prefix, section in sections()
    for name, field in section.model_fields.items()
    if re.search(r"\b(int|float)\b", str(field.annotation))
]


@pytest.mark.parametrize("key", NUMBERS)
def test_true_is_no_number(load_text: Load, key: str) -> None:
    assert f"{key}: expected a number, not true or false" in message_of(load_text, BASE, f"{key}=true")


def test_precedence_is_extends_then_file_then_override(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(BASE + "optimizer: {lr: 1.0, b1: 0.1, b2: 0.1, eps: 0.1}")
    (tmp_path / "second.yaml").write_text("optimizer: {b1: 0.2, b2: 0.2, eps: 0.2}")
    run = tmp_path / "run.yaml"
    run.write_text("extends: [first.yaml, second.yaml]\noptimizer: {b2: 0.3, eps: 0.3}")
    optimizer = load(run, ["optimizer.eps=0.4"]).optimizer
    assert (optimizer.lr, optimizer.b1, optimizer.b2, optimizer.eps) == (1.0, 0.2, 0.3, 0.4)


def test_extends_is_relative_to_the_file_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("models", "shared", "runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shared" / "base.yaml").write_text(BASE)
    (tmp_path / "models" / "small.yaml").write_text("extends: [../shared/base.yaml]\nmodel: {mlp_dim: 48}")
    (tmp_path / "runs" / "run.yaml").write_text("extends: [../models/small.yaml]\nseed: 7")
    monkeypatch.chdir(tmp_path / "shared")
    config = load(tmp_path / "runs" / "run.yaml")
    assert (config.model.mlp_dim, config.seed) == (48, 7)


def test_cyclic_and_missing_extends_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]")
    (tmp_path / "b.yaml").write_text("extends: [a.yaml]")
    assert "extends itself" in message_of(load, tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("extends: [absent.yaml]")
    message = message_of(load, tmp_path / "a.yaml")
    assert "absent.yaml: no such configuration file" in message and "named in" in message and "b.yaml" in message
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    assert "extends must be a list of file names, found 'a.yaml'" in message_of(load, tmp_path / "b.yaml")


@pytest.mark.parametrize("text", ["model: [", "- a\n- b", "\x00", "model: {a: 1, a: 2}"])
def test_file_that_is_no_mapping_is_one_line(load_text: Load, text: str) -> None:
    assert "run.yaml: " in (message := message_of(load_text, text)) and "\n" not in message


def test_override_replaces_a_list_whole(load_text: Load) -> None:
    config = load_text(BASE, "data.mixture=[{tokens: 5e3, weights: {code: 1}}]", "model.window=[8, null]")
    assert [(stage.tokens, stage.weights) for stage in config.data.mixture] == [(5000, {"code": 1.0})]
    assert config.model.window == (8, None)


def test_later_override_wins_and_null_clears(load_text: Load) -> None:
    config = load_text(BASE, "seed=1", "seed=2", "optimizer.clip_norm=null")
    assert config.seed == 2 and config.optimizer.clip_norm is None


@pytest.mark.parametrize("override", ["data.mixture[0].tokens=5", "seed", "=5"])
def test_override_that_is_no_dotted_key_is_refused(load_text: Load, override: str) -> None:
    assert override in message_of(load_text, BASE, override)


@pytest.mark.parametrize(("tokens", "nearest"), [(1, 32), (70, 64), (81, 96), (100, 96)])
def test_batch_that_is_no_multiple_names_the_nearest(load_text: Load, tokens: int, nearest: int) -> None:
    overrides = ["train.accumulate=2", f"train.batch_tokens={tokens}"]
    message = message_of(load_text, BASE, *overrides)
    assert f"= 16 x 2 = 32, found {tokens}; the nearest that works is {nearest}" in message
    assert load_text(BASE, *overrides, f"train.batch_tokens={nearest}").batch_size == nearest // 16


def test_batch_whose_counts_would_overflow_names_what_works(load_text: Load) -> None:
    message = message_of(load_text, BASE, f"logging.every_steps={2**26}")
    assert f"logging.every_steps of at most {2**26 - 1} works" in message
    load_text(BASE, f"logging.every_steps={2**26 - 1}")


def test_configuration_is_immutable_and_has_no_extra_keys(load_text: Load) -> None:
    config = load_text()
    for section in (config, config.model, config.data.mixture[0]):
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, next(iter(type(section).model_fields)), None)


def test_loading_has_no_side_effects(load_text: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    load_text()
    assert [path.name for path in tmp_path.rglob("*")] == ["run.yaml"]
    assert dict(os.environ) == before


def test_total_tokens_defaults_to_the_mixture(load_text: Load) -> None:
    assert load_text().total_tokens == 1000
    assert load_text(BASE, "train.total_tokens=5").total_tokens == 5


def test_yaml_of_a_configuration_loads_to_itself(load_text: Load) -> None:
    overrides = ["model.window=[8, null]", "remat.policy=[query, mlp_up]", "optimizer.lr=1e-7", "checkpoint.keep=3"]
    config = load_text(BASE, *overrides, "logging.profile={start_step: 3}", "data.validation={web: {path: c}}")
    assert load_text(to_yaml(config)) == config


def test_a_key_that_python_has_for_itself_is_written_as_it_is_read(load_text: Load) -> None:
    config = load_text(BASE, "init.from=runs/base", "init.optimizer=kept")
    assert config.init.path == "runs/base" and config.model_dump(mode="json")["init"]["from"] == "runs/base"
    assert load_text(to_yaml(config)) == config and "  from: runs/base\n" in to_yaml(config)
    assert "from" in json_schema()["$defs"]["InitConfig"]["properties"]


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.yaml")), ids=lambda path: path.stem)
def test_run_files_load(path: Path) -> None:
    assert load(path).batch_size > 0


def schema_nodes(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schema_nodes(child)


def test_schema_describes_every_key_in_one_sentence() -> None:
    schema = json_schema()
    for name, section in {"Config": schema, **schema["$defs"]}.items():
        for key, field in section["properties"].items():
            assert field.get("description", "").strip().endswith("."), f"{name}.{key} has no sentence of help"


def test_schema_is_whole_and_asks_for_nothing_that_extends_may_give() -> None:
    schema = json_schema()
    assert set(Config.model_fields) | {"extends"} == set(schema["properties"])
    kinds = {"object", "array", "string", "number", "integer", "boolean", "null"}
    for node in schema_nodes(schema):
        if "$ref" in node:
            assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]
        assert not isinstance(node.get("type"), str) or node["type"] in kinds
        assert not isinstance(node.get("required"), list)
    assert all(section["additionalProperties"] is False for section in (schema, *schema["$defs"].values()))


def test_schema_is_plain_json() -> None:
    assert yaml.safe_load(yaml.safe_dump(json_schema())) == json_schema()
