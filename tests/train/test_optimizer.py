"""Which parameter is updated how, and the updates against their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import GPT2
from tiny import model_config, run_config

from maxlm.config import MeshConfig, OptimizerConfig, PipelineConfig
from maxlm.model.decoder import abstract
from maxlm.parallel.mesh import build_mesh
from maxlm.train.optimizer import ADAM_RMS, build
from maxlm.train.state import blueprint, initial_state
from maxlm.train.step import train_step

# A first layer with a dense MLP, then two repeats of two layers with experts.
EXPERTS = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 24, "shared_experts": 2, "first_dense": 1}
EXPERTS |= {"scores": "sigmoid", "balance": "bias"}
REPEATS = {"pipeline": PipelineConfig(repeats=2)}
MODELS = {
    "untied": model_config(qk_norm=True),
    "tied": model_config(qk_norm=True, tie_embeddings=True),
    "experts": model_config(num_layers=5, moe=EXPERTS),
    # Every bias and norm, and the table of positions.
    "biased": model_config(**GPT2 | {"mlp_gated": True, "qk_norm": "all_heads", "norm_place": "both"}),
}

# Of every kind of parameter: what `muon` gives it to, and whether it decays.
TABLE = {
    "embedding": ("adamw", False),
    "output": ("adamw", True),
    "final_norm.scale": ("adamw", False),
    "attention_norm.scale": ("adamw", False),
    "attention.query": ("muon", True),
    "attention.key": ("muon", True),
    "attention.value": ("muon", True),
    "attention.out": ("muon", True),
    "attention.query_norm.scale": ("adamw", False),
    "attention.key_norm.scale": ("adamw", False),
    "mlp_norm.scale": ("adamw", False),
    "mlp.gate": ("muon", True),
    "mlp.up": ("muon", True),
    "mlp.down": ("muon", True),
    "mlp.router": ("adamw", True),
    "mlp.bias": ("adamw", False),
    "mlp.shared.gate": ("muon", True),
    "mlp.shared.up": ("muon", True),
    "mlp.shared.down": ("muon", True),
}
BIASED = {"attention_out_norm.scale", "mlp_out_norm.scale", "positions"}
BIASED |= {f"attention.{name}_bias" for name in ("query", "key", "value", "out")}
BIASED |= {f"mlp.{name}_bias" for name in ("gate", "up", "down")}
BIASED |= {f"{name}norm.bias" for name in ("final_", "attention_", "attention_out_", "mlp_", "mlp_out_")}
TABLE |= dict.fromkeys(BIASED, ("adamw", False))
NORMS_OF_HEADS = {"attention.query_norm.scale", "attention.key_norm.scale"}
OF_EXPERTS = {name for name in TABLE if name.startswith(("mlp.router", "mlp.bias", "mlp.shared"))}
ABSENT = {
    "untied": OF_EXPERTS | BIASED,
    "tied": OF_EXPERTS | BIASED | {"output"},
    "experts": NORMS_OF_HEADS | BIASED,
    "biased": OF_EXPERTS | {"output"},
}


def named_leaves(tree: dict) -> dict[str, np.ndarray]:
    """Leaves by dotted name, the number of the stack left out."""
    names = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }
    return {name.removeprefix("blocks.0."): np.asarray(leaf) for name, leaf in names.items()}


def random_tree(shapes: dict, seed: int) -> dict:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), shapes)


def directions(transform: optax.GradientTransformation, params: dict, gradients: list[dict], lr: float) -> list[dict]:
    """Directions of successive steps, and at the end the parameters after all of them."""
    state, found, update = transform.init(params), [], jax.jit(transform.update)
    for gradient in gradients:
        direction, state = update(gradient, state, params)
        found.append(direction)
        params = jax.tree.map(lambda p, d: p + lr * d, params, direction)
    return [*found, params]


def abstract_of(model: str) -> tuple[dict, dict]:
    """Shapes and logical axes."""
    return abstract(MODELS[model], **(REPEATS if model == "experts" else {}))[1:]


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_has_its_optimizer_and_decay(name: str, model: str) -> None:
    shapes, axes = abstract_of(model)
    transform = build(OptimizerConfig(name=name, weight_decay=0.25, eps=1e-12), axes)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    params, gradient = random_tree(shapes, 0), random_tree(shapes, 1)
    decay = named_leaves(directions(transform, params, [zeros], 1.0)[0])
    step = named_leaves(directions(transform, zeros, [gradient], 1.0)[0])
    params, gradient = named_leaves(params), named_leaves(gradient)
    kinds = {parameter: parameter.removeprefix("first.0.") for parameter in step}
    assert set(kinds.values()) == set(TABLE) - ABSENT[model]
    for parameter, kind in kinds.items():
        optimizer, decays = TABLE[kind]
        # A balance bias, which has no gradient, is so moved by the balance alone.
        np.testing.assert_allclose(decay[parameter], -0.25 * params[parameter] * decays, rtol=1e-6, err_msg=parameter)
        # Adam's first step is the sign of the gradient; an orthogonal matrix is nothing like it.
        is_sign = np.allclose(step[parameter], -np.sign(gradient[parameter]), atol=1e-3)
        assert is_sign == (name == "adamw" or optimizer == "adamw"), parameter


def test_adamw_equals_the_textbook() -> None:
    _, shapes, axes = abstract(model_config())
    config = OptimizerConfig(b1=0.8, b2=0.9, eps=0.1, weight_decay=0.3)
    params, gradients, lr = random_tree(shapes, 0), [random_tree(shapes, seed) for seed in (1, 2, 3)], 0.05
    found = named_leaves(directions(build(config, axes), params, gradients, lr)[-1])
    gradients = [named_leaves(gradient) for gradient in gradients]
    for name, parameter in named_leaves(params).items():
        p, m, v = parameter.astype(np.float64), 0.0, 0.0
        for t, gradient in enumerate(gradients, start=1):
            g = gradient[name].astype(np.float64)
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
            update = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 0.1)
            p = p - lr * (update + 0.3 * TABLE[name][1] * p)
        np.testing.assert_allclose(found[name], p, rtol=1e-5, atol=1e-6, err_msg=name)


# Where the matrix of a layer is divided into input and output axes, of which it has two or three.
INPUT_AXES = {"attention.query": 1, "attention.key": 1, "attention.value": 1, "attention.out": 2}
INPUT_AXES |= {f"mlp.{part}{name}": 1 for part in ("", "shared.") for name in ("gate", "up", "down")}


def matrices(name: str, leaf: np.ndarray) -> np.ndarray:
    """[stack of repeats, layers and experts, input, output]."""
    leaf = leaf.reshape(-1, *leaf.shape[-3 if name.startswith("attention") else -2 :])
    return leaf.reshape(len(leaf), int(np.prod(leaf.shape[1 : 1 + INPUT_AXES[name]])), -1)


@pytest.mark.parametrize("model", ["untied", "experts"])
def test_muon_orthogonalises_every_matrix_by_itself(model: str) -> None:
    shapes, axes = abstract_of(model)
    zeros, random = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), np.random.default_rng(1)

    def scaled(g: jax.Array, names: tuple[str, ...]) -> jax.Array:
        # Gradients that differ by orders of magnitude: each is normalised by itself.
        stack = sum(name in ("repeats", "layers", "experts") for name in names)
        return g * (10 ** random.uniform(-3, 3, g.shape[:stack])).reshape(g.shape[:stack] + (1,) * (g.ndim - stack))

    gradient = jax.tree.map(scaled, random_tree(shapes, 0), axes)
    transform = build(OptimizerConfig(name="muon", weight_decay=0.0), axes)
    found, checked = named_leaves(directions(transform, zeros, [gradient], 1.0)[0]), 0
    for name, leaf in named_leaves(gradient).items():
        kind = name.removeprefix("first.0.")
        if kind not in INPUT_AXES:
            continue
        for g, update in zip(matrices(kind, leaf), matrices(kind, found[name]), strict=True):
            update = update / (ADAM_RMS * np.sqrt(max(g.shape)))
            singular = np.linalg.svd(update, compute_uv=False)
            assert singular.min() > 0.6 and singular.max() < 1.3, name
            left, _, right = np.linalg.svd(g, full_matrices=False)
            alignment = -np.sum(update * (left @ right)) / (np.linalg.norm(update) * np.linalg.norm(left @ right))
            assert alignment > 0.97, name
            checked += 1
    # Of each layer 4 of attention and 3 of an MLP; of four layers those of 4 experts and of the shared ones.
    assert checked == (2 * 7 if model == "untied" else 7 + 4 * (4 + 4 * 3 + 3))


def test_muon_on_a_stack_equals_muon_on_each_layer() -> None:
    config, layers = OptimizerConfig(name="muon"), 3
    _, shapes, axes = abstract(model_config(num_layers=layers))
    params, gradients = random_tree(shapes, 0), [random_tree(shapes, 1), random_tree(shapes, 2)]
    stacked = directions(build(config, axes), params, gradients, 0.1)[-1]["blocks"]["0"]
    for layer in range(layers):

        def only(tree: dict, layer=layer) -> dict:
            return tree | {"blocks": jax.tree.map(lambda leaf: leaf[layer : layer + 1], tree["blocks"])}

        alone = directions(build(config, axes), only(params), list(map(only, gradients)), 0.1)[-1]["blocks"]["0"]
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(stacked), strict=True):
            np.testing.assert_allclose(one[0], other[layer], atol=1e-5)


def test_learning_rate_enters_linearly() -> None:
    config = run_config(remat={"policy": "none"})
    plan = blueprint(config, build_mesh(MeshConfig(), jax.devices()[:1]), 1)
    state = initial_state(plan)
    tokens = np.random.default_rng(0).integers(64, size=(8, 17)).astype(np.int32)
    ones = np.ones((8, 16), np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": ones, "positions": ones.cumsum(1) - 1}
    batch |= {"weights": ones.astype(np.float32), "sources": np.zeros(8, np.int32)}
    step = jax.jit(partial(train_step, plan=plan))
    (none, _), (single, first), (double, second) = (step(state, batch, jnp.float32(lr)) for lr in (0.0, 0.25, 0.5))
    jax.tree.map(np.testing.assert_array_equal, none.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, single.optimizer, double.optimizer)
    assert float(second["update_norm"]) == pytest.approx(2 * float(first["update_norm"]), rel=1e-6) != 0
    for start, one, two in zip(*(jax.tree.leaves(tree.params) for tree in (state, single, double)), strict=True):
        np.testing.assert_allclose(two - start, 2 * (one - start), rtol=1e-4, atol=1e-6)
