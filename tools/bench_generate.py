"""How fast a model decodes on the devices of this machine, with a look of the host at every token and without.

    python tools/bench_generate.py configs/models/ladder-60m.yaml --rows 1,8 --prompt 64 --tokens 128 --pairs 5

Parameters are random, of the type in which the device computes; CONFIG is a model file. The two ways take turns, after
one round in which everything is compiled; what counts is the median of the pairs' ratios. The last line of stdout is
JSON: per number of rows the tokens per second of both ways (medians), their ratio, and the seconds until the first
token, which are those of reading the prompts.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config import ModelConfig, read, validate
from maxlm.evaluate import generate as decoding
from maxlm.evaluate.sampling import Sampling
from maxlm.model import decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="model file")
    parser.add_argument("--rows", default="1,8", help="numbers of prompts that are decoded together")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens that are drawn per prompt")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    model = validate(read(options.config)["model"], ModelConfig, options.config)
    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    kinds = {"dtype": dtype, "params_dtype": dtype, "platform": device.platform, "device_kind": device.device_kind}
    graphdef, _, _ = decoder.abstract(model, **kinds)
    params = jax.jit(lambda key: decoder.initial_parameters(model, key, **kinds))(jax.random.key(0))
    result = {
        "device": device.device_kind,
        "config": options.config,
        "prompt": options.prompt,
        "tokens": options.tokens,
    }
    for rows in map(int, options.rows.split(",")):
        prompts = np.random.default_rng(0).integers(model.vocab_size, size=(rows, options.prompt)).tolist()
        result[f"rows {rows}"] = compare(graphdef, params, prompts, options.tokens, options.pairs)
        print(rows, result[f"rows {rows}"], flush=True)
    print(json.dumps(result))


def compare(graphdef, params: dict, prompts: list[list[int]], tokens: int, pairs: int) -> dict[str, float]:
    ways = {"every token": 0.0, "chunks": decoding.CHUNK_SECONDS}
    rates, first = {way: [] for way in ways}, []
    for number in range(pairs + 1):
        for way, seconds in ways.items():
            decoding.CHUNK_SECONDS = seconds
            until_first, rate = timed(graphdef, params, prompts, tokens)
            if number:  # the first round compiles
                rates[way].append(rate)
                first.append(until_first)
    ratios = [new / old for old, new in zip(*rates.values(), strict=True)]
    medians = {way: round(statistics.median(found), 1) for way, found in rates.items()}
    return medians | {"ratio": round(statistics.median(ratios), 3), "first": round(statistics.median(first), 3)}


def timed(graphdef, params: dict, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
    """Seconds until the first token, and tokens per second of all rows from there on."""
    begin, first = time.perf_counter(), None
    options = {"max_tokens": tokens, "sampling": Sampling(temperature=0), "batch_size": len(prompts)}
    for _ in decoding.stream(graphdef, params, prompts, **options):
        first = first or time.perf_counter()
    return first - begin, len(prompts) * (tokens - 1) / (time.perf_counter() - first)


if __name__ == "__main__":
    main()
