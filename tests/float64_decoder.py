"""The decoder in numpy and float64, written from the papers without regard to speed: what the real one is held to."""

import math

import jax
import numpy as np

from maxlm.config import ModelConfig


class Float64Decoder:
    """One row of tokens through a Llama-like decoder, dense or with experts."""

    def __init__(self, config: ModelConfig, params: dict):
        self.config, self.params = config, jax.tree.map(lambda p: np.asarray(p, np.float64), params)

    def __call__(self, tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> np.ndarray:
        x = self.params["embedding"][tokens]
        for layer in range(self.config.num_layers):
            params, window = self.layer_params(layer), self.config.window_pattern
            normed = self.norm(x, params["attention_norm"])
            x = x + self.attention(params["attention"], normed, segments, positions, window[layer % len(window)])
            normed = self.norm(x, params["mlp_norm"])
            has_experts = "router" in params["mlp"]
            x = x + (self.experts(params["mlp"], normed, segments) if has_experts else self.mlp(params["mlp"], normed))
        output = self.params["embedding"].T if self.config.tie_embeddings else self.params["output"]
        return self.norm(x, self.params["final_norm"]) @ output

    def layer_params(self, layer: int) -> dict:
        """Layers before the blocks have their own parameters; of the others one stack holds every n-th."""
        moe, period = self.config.moe, len(self.config.window_pattern)
        first = moe.first_dense if moe else 0
        if layer < first:
            return self.params["first"][layer]
        block, place = divmod(layer - first, math.lcm(period, moe.every if moe else 1))
        return jax.tree.map(lambda p: p[block], self.params["blocks"][str(place)])

    def norm(self, x: np.ndarray, params: dict) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_eps) * params["scale"]

    def rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotary embedding: the halves of a head are the real and imaginary parts of numbers that turn."""
        half = self.config.head_dim // 2
        speed = self.config.rope.theta ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * speed)
        return np.concatenate([turned.real, turned.imag], -1)

    def attention(self, params: dict, x: np.ndarray, segments, positions, window: int | None) -> np.ndarray:
        total = np.zeros_like(x)
        for head in range(self.config.num_heads):
            group = head * self.config.num_kv_heads // self.config.num_heads
            query, key = x @ params["query"][:, head], x @ params["key"][:, group]
            if self.config.qk_norm:
                query, key = self.norm(query, params["query_norm"]), self.norm(key, params["key_norm"])
            query, key, value = (
                self.rotate(query, positions),
                self.rotate(key, positions),
                x @ params["value"][:, group],
            )
            for s in range(len(x)):
                first = 0 if window is None else max(0, s - window + 1)
                seen = [t for t in range(first, s + 1) if segments[t] == segments[s]]
                weights = np.exp(key[seen] @ query[s] / math.sqrt(self.config.head_dim))
                total[s] += (weights / weights.sum()) @ value[seen] @ params["out"][head]
        return total

    def mlp(self, params: dict, x: np.ndarray) -> np.ndarray:
        gate = x @ params["gate"]
        return gate / (1 + np.exp(-gate)) * (x @ params["up"]) @ params["down"]

    def experts(self, params: dict, x: np.ndarray, segments) -> np.ndarray:
        """Token after token, the experts that its scores prefer, one by one; padding meets the shared alone."""
        moe = self.config.moe
        out = self.mlp(params["shared"], x) if moe.shared_experts else np.zeros_like(x)
        for token in np.flatnonzero(segments):
            row = x[token]
            logits = row @ params["router"]
            scores = np.exp(logits) / np.exp(logits).sum() if moe.scores == "softmax" else 1 / (1 + np.exp(-logits))
            preference = scores + params["bias"] if moe.balance == "bias" else scores
            chosen = sorted(range(moe.num_experts), key=lambda expert: -preference[expert])[: moe.experts_per_token]
            total = scores[chosen].sum() if moe.normalize else 1.0
            for expert in chosen:
                own = {name: params[name][expert] for name in ("gate", "up", "down")}
                out[token] += moe.scale * scores[expert] / total * self.mlp(own, row)
        return out
