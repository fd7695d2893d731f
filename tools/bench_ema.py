"""How much better averages of the parameters are than the parameters, at moments of one training run.

    python tools/bench_ema.py CONFIG [key=value ...] --decay 0.99,0.999 --at 100,400,600

Trains CONFIG once (in a temporary runs_dir) and keeps an average for each decay beside it, with the decay bounded as in
maxlm/train/ema.py and constant; neither changes the training. At the steps of --at every one of them is evaluated on
the run's held-out sources, on eval.sequences of each. Prints a table in Markdown: nats per target token.
"""

import argparse
import sys
import tempfile
from functools import partial

import jax
import numpy as np

from maxlm.config import load
from maxlm.errors import MaxlmError
from maxlm.evaluate import perplexity
from maxlm.parallel import runtime
from maxlm.report.progress import track
from maxlm.train import ema
from maxlm.train.run import Run
from maxlm.train.schedule import learning_rate

CONSTANT = ", constant"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--decay", default="0.9,0.99,0.999,0.9999", help="decays per step, with commas between")
    parser.add_argument("--at", required=True, help="steps after which to evaluate, with commas between")
    options = parser.parse_args()
    decays, moments = [float(text) for text in options.decay.split(",")], [int(text) for text in options.at.split(",")]
    try:
        with tempfile.TemporaryDirectory() as runs:
            print_table(measured(options.config, [*options.overrides, f"runs_dir={runs}"], decays, moments), moments)
    except MaxlmError as error:
        error.exit()


def measured(path: str, overrides: list[str], decays: list[float], moments: list[int]) -> dict[str, list[float]]:
    """Held-out losses at each moment: of the parameters, and of the average by each rule."""
    runtime.setup()
    with Run(load(path, overrides)) as run:
        config = run.config
        state, position, _ = run.restore(report=print)
        names = {f"{decay:g}{rule}": decay for decay in decays for rule in ("", CONSTANT)}
        averages = {name: ema.start(state.params) for name in names}
        # With so many updates before it the rule is that of the decay alone.
        averages |= {name: averages[name]._replace(updates=np.int32(10**9)) for name in names if CONSTANT in name}

        @partial(jax.jit, donate_argnums=0)
        def update(averages: dict, params: dict) -> dict:
            return {name: ema.updated(averages[name], params, names[name], run.plan.axes) for name in names}

        losses = {name: [] for name in ("parameters", *averages)}
        compiled, reader = run.compile(position), run.read(position)
        for _ in track(range(max(moments)), "training", max(moments)):
            after, shape = position.advanced(), position.span.shape
            total = position.schedule.tokens(config.total_tokens)
            rate = learning_rate(config.schedule, config.optimizer.lr, after.tokens, total)
            state, _ = compiled[shape](state, next(reader), run.scalar(rate))
            position = after
            reader.extend(position)
            with jax.set_mesh(run.mesh):
                averages = update(averages, state.params)
            if position.step in moments:
                for name in losses:
                    params = state.params if name == "parameters" else averages[name].params
                    losses[name].append(held_out(run, params))
    return losses


def held_out(run: Run, params: dict) -> float:
    """Nats per target token over all held-out sources."""
    config, sums = run.config, [0.0, 0]
    for shards in run.sources.validation.values():
        found = perplexity.evaluate(
            run.plan.graphdef,
            params,
            shards,
            mesh=run.mesh,
            seq_len=config.data.seq_len,
            batch_size=config.batch_size,
            sequences=config.eval.sequences,
            chunk=config.loss.chunk,
            mask_documents=config.data.mask_documents,
        )
        sums = [sums[0] + found.loss * found.target_tokens, sums[1] + found.target_tokens]
    return sums[0] / sums[1]


def print_table(losses: dict[str, list[float]], moments: list[int]) -> None:
    print(f"| weights | {' | '.join(f'step {step:,}' for step in moments)} |")
    print(f"|---|{'---|' * len(moments)}")
    for name, values in losses.items():
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
