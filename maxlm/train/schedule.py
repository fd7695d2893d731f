"""Learning rate as a function of tokens, computed on the host: an input of the step, not a part of its program."""

import math

from maxlm.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, tokens: int, total_tokens: int) -> float:
    """Rate of the step that ends after `tokens` slots of a run of `total_tokens`.

    Warm-up is linear from `initial_ratio` times the peak, which is above 0 where a model is trained on from the rate
    that its training ended with (re-warming; Gupta et al. 2023, Ibrahim et al. 2024). `final_ratio` times the peak is
    reached with the last token (constant and inverse_sqrt excepted). wsd (warm-up, stable, decay; Hu et al. 2024)
    decays linearly.
    """
    warmup, final = config.warmup_tokens, config.final_ratio
    if tokens < warmup:
        first = peak * config.initial_ratio
        return first + (peak - first) * tokens / warmup
    if config.name == "constant":
        return peak
    if config.name == "inverse_sqrt":
        return peak * math.sqrt(warmup / tokens)
    start = warmup
    if config.name == "wsd":
        start = max(warmup, total_tokens - (config.decay_tokens or total_tokens // 10))
    done = min(1.0, max(0, tokens - start) / max(1, total_tokens - start))
    if config.name == "cosine":
        return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
    return peak * (1 - (1 - final) * done)
