"""The decoder in numpy and float64, written from the papers without regard to speed: what the real one is held to."""

import math

import jax
import numpy as np

from maxlm.config import ModelConfig


class Float64Decoder:
    """One row of tokens through the decoder, dense or with experts."""

    def __init__(self, config: ModelConfig, params: dict):
        self.config, self.params = config, jax.tree.map(lambda p: np.asarray(p, np.float64), params)

    def __call__(self, tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> np.ndarray:
        config, x = self.config, self.params["embedding"][tokens]
        if config.scale_embeddings:
            x = x * math.sqrt(config.embed_dim)
        if config.learned_positions:
            x = x + self.params["positions"][positions]
        for layer in range(config.num_layers):
            params, window = self.layer_params(layer), config.window_pattern
            read = self.norm(x, params.get("attention_norm"))
            mixed = self.attention(params["attention"], read, segments, positions, window[layer % len(window)])
            x = x + self.norm(mixed, params.get("attention_out_norm"))
            read = self.norm(x, params.get("mlp_norm"))
            has_experts = "router" in params["mlp"]
            out = self.experts(params["mlp"], read, segments) if has_experts else self.mlp(params["mlp"], read)
            x = x + self.norm(out, params.get("mlp_out_norm"))
        output = self.params["embedding"].T if config.tie_embeddings else self.params["output"]
        logits, cap = self.norm(x, self.params["final_norm"]) @ output, config.logit_softcap
        return cap * np.tanh(logits / cap) if cap else logits

    def layer_params(self, layer: int) -> dict:
        """Layers before the blocks have their own parameters; of the others one stack holds every n-th."""
        moe, period = self.config.moe, len(self.config.window_pattern)
        first = moe.first_dense if moe else self.config.num_layers % period
        if layer < first:
            return self.params["first"][layer]
        block, place = divmod(layer - first, math.lcm(period, moe.every if moe else 1))
        return jax.tree.map(lambda p: p[block], self.params["blocks"][str(place)])

    def norm(self, x: np.ndarray, params: dict | None) -> np.ndarray:
        """Over the last axis; LayerNorm where there is a bias; nothing without parameters."""
        if params is None:
            return x
        if "bias" in params:
            x = x - x.mean(-1, keepdims=True)
        scale = params["scale"] + 1 if self.config.norm_offset else params["scale"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_eps) * scale + params.get("bias", 0)

    def rotate(self, x: np.ndarray, positions: np.ndarray, lengths: np.ndarray, window: int | None) -> np.ndarray:
        """Rotary embedding: halves of what is rotated are the real and imaginary parts of numbers that turn."""
        if self.config.learned_positions:
            return x
        half = self.config.rope_dim // 2
        plain = window is not None and self.config.rope.local_theta is not None
        turned = (x[..., :half] + 1j * x[..., half : 2 * half]).astype(complex)
        for token, (position, length) in enumerate(zip(positions, lengths, strict=True)):
            for pair in range(half):
                angle = position * (self.local_frequency(pair) if plain else self.frequency(pair, length))
                turned[token, pair] *= np.exp(1j * angle) * (1 if plain else self.rotation_factor())
        return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], -1)

    def local_frequency(self, pair: int) -> float:
        return self.config.rope.local_theta ** (-2 * pair / self.config.rope_dim)

    def frequency(self, pair: int, length: int) -> float:
        """Of one pair, in a document of so many tokens."""
        rope, dim = self.config.rope, self.config.rope_dim
        scaling, frequency = rope.scaling, rope.theta ** (-2 * pair / dim)
        match scaling and scaling.name:
            case "linear":
                return frequency / scaling.factor
            case "dynamic":
                beyond = max(0, length / scaling.original_length - 1)
                return frequency * (1 + scaling.factor * beyond) ** (-2 * pair / (dim - 2))
            case "longrope":
                is_long = length > scaling.original_length
                return frequency / (scaling.long_factors if is_long else scaling.short_factors)[pair]
            case "llama3":
                wavelength = 2 * math.pi / frequency
                if wavelength < scaling.original_length / scaling.high_freq_factor:
                    return frequency
                if wavelength > scaling.original_length / scaling.low_freq_factor:
                    return frequency / scaling.factor
                smooth = scaling.original_length / wavelength - scaling.low_freq_factor
                smooth /= scaling.high_freq_factor - scaling.low_freq_factor
                return (1 - smooth) * frequency / scaling.factor + smooth * frequency
            case "yarn":
                # The pair whose wavelength fits so often into the original length.
                first, last = (
                    math.log(scaling.original_length / (2 * math.pi * turns), rope.theta) * dim / 2
                    for turns in (scaling.beta_fast, scaling.beta_slow)
                )
                if scaling.truncate:
                    first, last = math.floor(first), math.ceil(last)
                first, last = max(first, 0), min(last, dim - 1)
                slowed = min(1, max(0, (pair - first) / (last - first if last != first else 0.001)))
                return frequency * (slowed / scaling.factor + 1 - slowed)
        return frequency

    def rotation_factor(self) -> float:
        scaling = self.config.rope.scaling
        if getattr(scaling, "attention_factor", None):
            return scaling.attention_factor
        match scaling and scaling.name:
            case "longrope" if scaling.factor and scaling.factor > 1:
                return math.sqrt(1 + math.log(scaling.factor, scaling.original_length))
            case "yarn" if scaling.factor > 1:
                growth = math.log(scaling.factor) / 10
                if scaling.mscale and scaling.mscale_all_dim:
                    return (1 + growth * scaling.mscale) / (1 + growth * scaling.mscale_all_dim)
                return 1 + growth
        return 1.0

    def attention(self, params: dict, x: np.ndarray, segments, positions, window: int | None) -> np.ndarray:
        config = self.config
        heads = self.heads_of_latents if config.latent else self.heads
        lengths = np.array([1 + positions[segments == own].max() for own in segments])
        queries, keys, values = heads(params, x, positions, lengths, window)
        scale = config.query_scale or 1 / math.sqrt(config.head_dim)
        total = np.zeros_like(x) + params.get("out_bias", 0)
        for head in range(config.num_heads):
            group = head * config.num_kv_heads // config.num_heads
            for s in range(len(x)):
                first = 0 if window is None else max(0, s - window + 1)
                seen = [t for t in range(first, s + 1) if segments[t] == segments[s]]
                scores = keys[seen, group] @ queries[s, head] * scale
                if cap := config.attention_softcap:
                    scores = cap * np.tanh(scores / cap)
                weights = np.exp(scores)
                total[s] += (weights / weights.sum()) @ values[seen, group] @ params["out"][head]
        return total

    def heads(self, params: dict, x: np.ndarray, positions, lengths, window: int | None) -> tuple[np.ndarray, ...]:
        """Queries, keys and values by token and head."""
        config = self.config
        queries, keys, values = (
            np.stack([x @ params[name][:, head] for head in range(heads)], 1) + params.get(f"{name}_bias", 0)
            for name, heads in (
                ("query", config.num_heads),
                ("key", config.num_kv_heads),
                ("value", config.num_kv_heads),
            )
        )
        if config.qk_norm:
            queries, keys = (
                self.norm_of_heads(x, params[name]) for x, name in ((queries, "query_norm"), (keys, "key_norm"))
            )
        queries, keys = (
            np.stack(
                [self.rotate(of_heads[:, head], positions, lengths, window) for head in range(of_heads.shape[1])], 1
            )
            for of_heads in (queries, keys)
        )
        return queries, keys, values

    def heads_of_latents(self, params: dict, x, positions, lengths, window: int | None) -> tuple[np.ndarray, ...]:
        """DeepSeek-V2, equations 37 to 47: one rotated key for all heads, behind what the latent makes of each."""
        latent = self.config.latent

        def norm(c: np.ndarray, name: str) -> np.ndarray:
            return c / np.sqrt((c**2).mean(-1, keepdims=True) + latent.norm_eps) * params[name]["scale"]

        queried = norm(x @ params["query_down"], "query_norm") if latent.query_rank else x
        c = norm(x @ params["kv_down"], "kv_norm")
        rotated = self.rotate(x @ params["key_rope"], positions, lengths, window)
        queries, keys, values = [], [], []
        for head in range(self.config.num_heads):
            query = queried @ params["query_up" if latent.query_rank else "query"][:, head]
            still, turning = np.split(query, [latent.nope_head_dim], -1)
            queries.append(np.concatenate([still, self.rotate(turning, positions, lengths, window)], -1))
            keys.append(np.concatenate([c @ params["key_up"][:, head], rotated], -1))
            values.append(c @ params["value_up"][:, head])
        return tuple(np.stack(of_heads, 1) for of_heads in (queries, keys, values))

    def norm_of_heads(self, x: np.ndarray, params: dict) -> np.ndarray:
        if self.config.qk_norm != "all_heads":
            return self.norm(x, params)
        flat = {"scale": params["scale"].reshape(-1)}
        return self.norm(x.reshape(len(x), -1), flat).reshape(x.shape)

    def mlp(self, params: dict, x: np.ndarray) -> np.ndarray:
        up = x @ params["up"] + params.get("up_bias", 0)
        if self.config.mlp_gated:
            hidden = self.activate(x @ params["gate"] + params.get("gate_bias", 0)) * up
        else:
            hidden = self.activate(up)
        return hidden @ params["down"] + params.get("down_bias", 0)

    def activate(self, x: np.ndarray) -> np.ndarray:
        if self.config.activation == "silu":
            return x / (1 + np.exp(-x))
        if self.config.activation == "gelu_exact":
            return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def experts(self, params: dict, x: np.ndarray, segments) -> np.ndarray:
        """Token after token, the experts that its scores prefer, one by one; padding meets the shared alone."""
        moe = self.config.moe
        out = self.mlp(params["shared"], x) if moe.shared_experts else np.zeros_like(x)
        for token in np.flatnonzero(segments):
            row = x[token]
            logits = row @ params["router"]
            scores = np.exp(logits) / np.exp(logits).sum() if moe.scores == "softmax" else 1 / (1 + np.exp(-logits))
            preference = scores + params["bias"] if moe.balance == "bias" else scores
            chosen = sorted(self.in_best_groups(preference), key=lambda expert: -preference[expert])
            chosen = chosen[: moe.experts_per_token]
            total = scores[chosen].sum() if moe.normalize else 1.0
            for expert in chosen:
                own = {name: params[name][expert] for name in ("gate", "up", "down")}
                out[token] += moe.scale * scores[expert] / total * self.mlp(own, row)
        return out

    def in_best_groups(self, preference: np.ndarray) -> list[int]:
        """The experts of the groups whose best one, or whose two best ones together, are preferred."""
        moe = self.config.moe
        groups, best = np.split(np.arange(moe.num_experts), moe.groups), {"max": 1, "top2": 2}[moe.group_score]
        groups = sorted(groups, key=lambda group: -np.sort(preference[group])[-best:].sum())
        return [expert for group in groups[: moe.groups_per_token] for expert in group]
