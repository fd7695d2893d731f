"""The time of a step by its roofline: an example by hand, and what must hold for any chip and mesh."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny import run_config

from maxlm.config import Config
from maxlm.model.counts import flops_per_token, forward_flops_per_token, matmul_parameter_count
from maxlm.parallel.hardware import CHIPS, System, system
from maxlm.plan import memory
from maxlm.plan.communication import expected, layout
from maxlm.plan.roofline import EFFICIENCY, Prediction, bandwidth, layout_for, predict
from maxlm.plan.work import Work, estimated_work

MODEL = {"vocab_size": 4096, "embed_dim": 1024, "num_layers": 6, "mlp_dim": 3072, "num_heads": 8, "head_dim": 128}
LAYER = 1024 * 128 * (8 + 2 + 2 + 8) + 3 * 1024 * 3072
HEAD = 4096 * 1024
TOKENS, LENGTH = 2**20, 1024
V5P = CHIPS["v5p"]
FILES = Path(__file__).parents[2] / "configs/models"


def config_of(mesh: dict, **sections: dict) -> Config:
    data = {"seq_len": LENGTH, "mixture": [{"tokens": 2**30, "weights": {"web": 1}}]}
    values = {"mesh": {"fsdp": 1} | mesh, "data": data, "train": {"batch_tokens": TOKENS}}
    values |= {"model": MODEL, "precision": {"compute": "bfloat16"}, "remat": {"policy": "full"}}
    return run_config(**values | sections)


def time_of(mesh: dict, name: str = "v5p:2x2x2", **sections: dict) -> Prediction:
    return predict(config_of(mesh, **sections), system(name))


def work_of(mesh: dict, name: str = "v5p:2x2x2", **sections: dict) -> Work:
    return estimated_work(layout_for(config_of(mesh, **sections), system(name)))


def test_work_of_a_step_by_hand() -> None:
    """A token's 8 x (layers' parameters), less the last product of each layer, and 6 x those of the head."""
    config, work = config_of({"fsdp": 8}), work_of({"fsdp": 8})
    tokens = TOKENS / 8
    down = 1024 * 3072
    # Attention: 2 products forward, 2 again, 7 in the kernels of the backward pass, over half of the keys.
    attention = 2 * (2 + 2 + 7) * 8 * 128 * (LENGTH + 1) / 2 * 6
    assert work.flops == pytest.approx(tokens * (6 * (8 * LAYER - 2 * down) + 6 * HEAD + attention), rel=1e-12)
    weights = 6 * LAYER * (3 + 1) - 6 * down  # read or written once for each product
    head = HEAD * (2 * 2 + 2 * 4) * 2  # for each of two chunks of the loss
    activations = 2 * 6 * (10 * 1024 + 6 * 12 * 128 + 6 * 3072) * (2 + 2) + 4096 * 4 * 6
    assert work.memory_bytes == pytest.approx(2 * weights + head + tokens * activations, rel=1e-12)
    norms = (2 * 6 + 1) * 1024  # not sharded
    assert work.update_bytes == 32 * ((6 * LAYER + 2 * HEAD) / 8 + norms)
    assert work.weights == expected(layout(config, {**config.mesh.axes, "fsdp": 8})).weights


def test_time_of_a_step_by_hand() -> None:
    config, work = config_of({"fsdp": 4, "tensor": 2}), Work(459e12, 2765e9, 27.65e9, {"fsdp": 1e12}, {"tensor": 20e9})
    found = predict(config, system("v5p:2x2x2"), work, efficiency=0.5)
    # fsdp has two dimensions of two chips, tensor the third: a link each.
    assert found.parts == pytest.approx({"compute": 2.0, "bubble": 0, "waiting": 3.0, "tensor": 0.2, "update": 0.01})
    assert found.overlapped == pytest.approx({"memory": 1.0, "fsdp": 5.0})
    assert found.step_seconds == pytest.approx(5.21)
    assert found.tokens_per_second_per_chip == pytest.approx(TOKENS / 5.21 / 8)
    useful = TOKENS * flops_per_token(config.model, LENGTH)
    assert found.mfu == pytest.approx(useful / 5.21 / 8 / 459e12)


def test_twice_the_chips_halve_the_arithmetic() -> None:
    one, two = time_of({"fsdp": 8}), time_of({"fsdp": 16}, "v5p:2x2x4")
    assert two.parts["compute"] == pytest.approx(one.parts["compute"] / 2)
    assert two.mfu == pytest.approx(one.mfu, rel=0.01)


@pytest.mark.parametrize(
    ("mesh", "sections"),
    [
        ({"data": 8}, {}),
        ({"fsdp": 2, "tensor": 4}, {}),
        ({"fsdp": 4, "context": 2}, {}),
        ({"fsdp": 8}, {"train": {"batch_tokens": TOKENS, "accumulate": 4}}),
    ],
)
def test_meshes_share_the_same_arithmetic(mesh: dict, sections: dict) -> None:
    # Keys and values of 2 heads are computed whole on each of 4 tensor shards.
    again = 3 * 2 * 1024 * 2 * 128 * 6 * 8 * TOKENS / 8 if mesh.get("tensor") == 4 else 0
    assert work_of(mesh, **sections).flops == pytest.approx(work_of({"fsdp": 8}).flops + again, rel=1e-12)


def test_bubbles_are_arithmetic_of_idle_stages() -> None:
    mesh, schedule = {"pipeline": 2, "fsdp": 4}, {"microbatches": 4}
    found, alone = time_of(mesh, pipeline=schedule), work_of({"fsdp": 8})
    arithmetic = found.parts["compute"] + found.parts["bubble"]
    assert found.parts["bubble"] == pytest.approx(arithmetic * 1 / (4 + 1))
    # The layers run five ticks for four microbatches; the head has no bubble.
    head = 6 * HEAD * TOKENS / 8
    work = work_of(mesh, pipeline=schedule)
    assert work.flops - head == pytest.approx((alone.flops - head) * 5 / 4)
    staged = work_of(mesh, pipeline=schedule | {"remat_stages": True})
    forward = 2 * LAYER + 4 * 8 * 128 * (LENGTH + 1) / 2
    assert staged.flops - work.flops == pytest.approx(6 * forward * TOKENS / 8 * 5 / 4)


def test_what_remat_recomputes() -> None:
    policies = ("full", "dots", ("query", "key", "value", "attention", "attention_out", "mlp_gate", "mlp_up"), "none")
    full, dots, saved, none = (work_of({"fsdp": 8}, remat={"policy": policy}).flops for policy in policies)
    assert full > dots == saved == none
    attention = 4 * 8 * 128 * (LENGTH + 1) / 2 * 6 * TOKENS / 8
    config = config_of({"fsdp": 8})
    assert full - dots == pytest.approx(2 * 6 * (LAYER - 1024 * 3072) * TOKENS / 8 + attention)
    products = 6 * matmul_parameter_count(config.model) * TOKENS / 8
    assert none == pytest.approx(products + (2 + 7) / 2 * attention)


@pytest.mark.parametrize("path", sorted(FILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_without_recomputation_work_is_what_mfu_counts(path: Path) -> None:
    """But for attention's backward kernels: they compute 7 products, 4 as wide as keys, of which MFU counts 4."""
    model = yaml.safe_load(path.read_text())["model"]
    work = work_of({"fsdp": 8}, model=model, remat={"policy": "none"})
    config = config_of({"fsdp": 8}, model=model)
    forward = forward_flops_per_token(config.model, LENGTH)
    keys, values = config.model.head_dim, config.model.value_dim
    attention = (5 * keys + 4 * values) / (keys + values) * forward["attention"]
    assert work.flops == pytest.approx((3 * forward["matrices"] + attention) * TOKENS / 8, rel=1e-9)


def test_experts_work_for_the_tokens_that_choose_them() -> None:
    moe = {"num_experts": 8, "experts_per_token": 2, "mlp_dim": 3072}
    alone, shared = (work_of(mesh, model=MODEL | {"moe": moe}) for mesh in ({"fsdp": 8}, {"expert": 4, "fsdp": 2}))
    assert shared.flops == pytest.approx(alone.flops)
    dense = work_of({"fsdp": 8}, model=MODEL | {"mlp_dim": 2 * 3072}).flops
    router, down = 8 * 1024 * 8, 2 * 2 * 1024 * 3072  # results of experts are weighted, so they are recomputed
    assert alone.flops == pytest.approx(dense + 6 * (router + down) * TOKENS / 8)
    assert not alone.activations and set(shared.activations) == {"expert"}


LINKS = [
    ("v5p:4x4x4", {"data": 4, "fsdp": 16}, {"fsdp": 4, "data": 2}),  # rings, in two dimensions and in one
    ("v5p:4x4x4", {"fsdp": 64}, {"fsdp": 6}),
    ("v5p:4x4x4", {"data": 2, "fsdp": 32}, {"fsdp": 5, "data": 1 / 2}),  # the last axis takes whole dimensions first
    ("v5p:2x2x2", {"fsdp": 8}, {"fsdp": 3}),  # too short to be joined to rings
    ("v5e:16x16", {"fsdp": 64, "tensor": 4}, {"tensor": 1, "fsdp": 2 + 1 / 4}),
    ("v6e:8x8", {"fsdp": 8, "tensor": 8}, {"tensor": 1, "fsdp": 1}),
    ("7x:4x4x4", {"fsdp": 128}, {"fsdp": 7}),  # and the other half of the chip
]


@pytest.mark.parametrize(("name", "mesh", "links"), LINKS)
def test_axes_of_a_torus_have_its_links(name: str, mesh: dict, links: dict) -> None:
    hardware = system(name)
    plan = layout_for(config_of(mesh), hardware)
    found = {axis: bandwidth(plan, hardware, [axis]) / hardware.chip.link_bandwidth for axis in links}
    assert found == pytest.approx(links)
    both = bandwidth(plan, hardware, list(links)) / hardware.chip.link_bandwidth
    assert both == pytest.approx(sum(links.values()))


def test_what_leaves_a_slice_or_a_node_goes_over_the_network() -> None:
    slices = layout_for(config_of({"data": 4, "fsdp": 4, "slices": 2}), system("v5p:2x2x2"))
    # Two chips of every slice share the way to the others.
    assert bandwidth(slices, system("v5p:2x2x2"), ["data"]) == 2 * V5P.network_bandwidth
    assert bandwidth(slices, system("v5p:2x2x2"), ["fsdp"]) == 2 * V5P.link_bandwidth
    gpus, h100 = system("h100x32"), CHIPS["h100"]
    plan = layout_for(config_of({"data": 2, "fsdp": 4, "tensor": 4}), gpus)
    found = {axis: bandwidth(plan, gpus, axis.split("+")) for axis in ("data", "fsdp", "tensor", "fsdp+tensor")}
    # tensor takes half a node; fsdp has two GPUs of a node, with tensor all eight.
    assert found == {
        "data": h100.network_bandwidth,
        "fsdp": 2 * h100.network_bandwidth,
        "tensor": h100.link_bandwidth,
        "fsdp+tensor": 8 * h100.network_bandwidth,
    }


def test_tensor_beyond_a_node_is_slower() -> None:
    def seconds(size: int) -> float:
        return time_of({"fsdp": 32 // size, "tensor": size}, "h100x32", parallel={"sequence": True}).parts["tensor"]

    assert seconds(16) > 1.5 * seconds(8) > 0


def test_a_faster_link_shortens_its_axis_alone() -> None:
    chip = replace(V5P, link_bandwidth=2 * V5P.link_bandwidth)
    fast = System("fast", chip, 8, None, (2, 2, 2))
    before, after = (predict(config_of({"fsdp": 4, "tensor": 2}), kind) for kind in (system("v5p:2x2x2"), fast))
    assert after.parts["tensor"] == pytest.approx(before.parts["tensor"] / 2)
    assert after.overlapped["fsdp"] == pytest.approx(before.overlapped["fsdp"] / 2)
    assert after.parts["compute"] == before.parts["compute"]


def test_efficiency_is_of_the_family() -> None:
    assert set(EFFICIENCY) <= set(CHIPS) and all(0.3 < share < 0.9 for share in EFFICIENCY.values())
    h100, h200 = (time_of({"fsdp": 8}, name) for name in ("h100x8", "h200x8"))
    assert h200.parts["compute"] == h100.parts["compute"]  # none was fitted for it


@pytest.mark.parametrize("zero", [3, 1])
def test_an_average_takes_four_bytes_a_parameter_and_eight_of_the_updates_traffic(zero: int) -> None:
    sections = {"parallel": {"zero": zero}}
    without, with_ = (
        layout_for(config_of({"data": 2, "fsdp": 4}, optimizer={"ema": decay}, **sections), system("v5p:2x2x2"))
        for decay in (None, 0.999)
    )
    norms = (2 * 6 + 1) * 1024
    split = (6 * LAYER + 2 * HEAD) / 4 + norms  # as the moments are, also where parameters are whole
    before, after = memory.estimate(without), memory.estimate(with_)
    assert before["average"] == 0 and after == before | {"average": 4 * split}
    assert after["moments"] == 2 * after["average"]
    assert estimated_work(with_).update_bytes == estimated_work(without).update_bytes + 8 * split
    host = with_.config.model_copy(update={"optimizer": with_.config.optimizer.model_copy(update={"offload": "host"})})
    assert memory.estimate(layout_for(host, system("v5p:2x2x2")))["average"] == 0
