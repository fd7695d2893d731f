"""What a plan is made for: a run as it is, or a model alone with the rest filled in."""

from pathlib import Path

import pytest

from maxlm.config import load
from maxlm.errors import ConfigError
from maxlm.model.counts import parameter_count
from maxlm.plan.request import request

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "configs/models/llama3-8b.yaml"


def test_a_model_alone_is_completed() -> None:
    config, system = request(MODEL, [], "v5p-128")
    assert (config.name, system.num_devices) == ("llama3-8b", 64)
    assert config.batch_size == 64  # a sequence a device
    assert config.total_tokens == 20 * parameter_count(config.model)
    assert config.mesh.fsdp == -1 and config.remat.policy == "full"


def test_what_is_stated_is_kept() -> None:
    overrides = ["data.seq_len=8192", "train.accumulate=4", "mesh={data: 2}", "train.total_tokens=1e12"]
    config, _ = request(MODEL, overrides, "h100x8")
    assert (config.data.seq_len, config.batch_size, config.mesh.data) == (8192, 4 * 8, 2)
    assert config.total_tokens == 10**12
    assert request(MODEL, ["train.batch_tokens=65536"], "h100x8")[0].train.batch_tokens == 65536


def test_the_default_length_is_one_that_the_model_has_positions_for() -> None:
    config, _ = request(ROOT / "configs/models/gpt2-124m.yaml", [], "h100x8")
    assert config.data.seq_len == 1024


@pytest.mark.parametrize("name", ["llama3-8b-v5p-128", "mixtral-8x7b-v5p-128"])
def test_a_run_is_planned_as_it_stands(name: str) -> None:
    path = ROOT / f"configs/runs/{name}.yaml"
    config, system = request(path, [])
    assert config == load(path) and system.name == config.hardware.name


def test_the_named_hardware_stands_in_for_the_files() -> None:
    path = ROOT / "configs/runs/llama3-8b-v5p-128.yaml"
    config, system = request(path, [], "v5p-256")
    assert (config.hardware.name, system.num_devices) == ("v5p-256", 128)


@pytest.mark.parametrize(
    ("overrides", "hardware", "message"),
    [
        ([], None, "no hardware to plan for; give --hardware NAME or hardware.name"),
        ([], "v5p-129", "v5p-128"),
        (["hardware=3"], None, "no hardware to plan for"),
        (["model.num_layer=3"], "h100x8", "model: unknown key 'num_layer'; the nearest is 'num_layers'"),
        (["data=[1]"], "h100x8", "data: found"),
        (["train=3"], "h100x8", "train: found 3"),
        (["mesh.slices=two"], "v5p-128", "mesh.slices: found 'two'"),
    ],
)
def test_bad_requests_are_told(overrides: list, hardware: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[").replace("(", r"\(")):
        request(MODEL, overrides, hardware)
