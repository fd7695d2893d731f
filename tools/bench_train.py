"""How fast the train step is on the devices of this machine, beside what plan predicts.

    python tools/bench_train.py CONFIG [key=value ...]                         one configuration
    python tools/bench_train.py CONFIG --compare kernels.attention=reference   two, taking turns, and their ratio
    python tools/bench_train.py CONFIG --sweep remat.policy=none,dots,full     a row for every value, and the fastest

The step is the one that `maxlm train` runs, on synthetic documents packed as a run's are (`data.mask_documents=false`:
without masks), so no data need exist; CONFIG may be a model file alone. `--compare` keeps both in one process and lets
them take turns, so that both meet the same noise of a shared machine; what counts is the median of the pairs' ratios.
`--sweep` may be given several times, for every combination. Each row has a process of its own: its GiB are its own,
and running out of memory is a row too. The last line of stdout is JSON.

    tokens/s    train.batch_tokens / median step time; slots, as in metrics.jsonl
    MFU         FLOPs per token x tokens/s / (devices x dense bfloat16 peak), nothing recomputed, causal attention once;
                null on a device whose peak is unknown
    GiB         the most memory that the process held on one device; null where the device does not say

On one H100, bfloat16 with float32 parameters, packed documents:

    bench="python tools/bench_train.py"
    sweep="--sweep kernels.attention=auto,reference --sweep remat.policy=none,dots,full"
    $bench configs/models/gpt2-124m.yaml data.seq_len=1024 $sweep --sweep train.batch_tokens=32768,65536,131072
    $bench configs/models/ladder-350m.yaml data.seq_len=2048 $sweep --sweep train.batch_tokens=32768,65536
    $bench configs/models/ladder-1.3b.yaml data.seq_len=4096 $sweep --sweep train.batch_tokens=16384,32768

and, for an exact ratio where both fit together, with the batch that was the fastest:

    $bench configs/models/gpt2-124m.yaml data.seq_len=1024 --compare kernels.attention=reference
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from maxlm.config import Config, read, validate
from maxlm.errors import ConfigError, DoesNotFitError, MaxlmError
from maxlm.report.progress import compact, track

if TYPE_CHECKING:
    from timed_steps import TimedSteps

    from maxlm.parallel.hardware import System

MFU_FORMULA = "flops_per_token x tokens_per_second / (devices x dense bfloat16 peak)"


def main() -> None:
    options = parse()
    try:
        config = load_any(options.config, options.overrides)
        if options.sweep:
            sweep(options)
        elif options.compare:
            compare(config, options)
        else:
            single(config, options)
    except MaxlmError as error:
        error.exit()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run or of a model")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--steps", type=count, default=20, help="timed steps, of each turn of a pair (default 20)")
    parser.add_argument("--warmup", type=count, default=3, help="steps before them (default 3)")
    parser.add_argument("--documents", type=count, default=500, help="mean tokens of a document (default 500)")
    parser.add_argument("--pairs", type=count, default=5, help="with --compare: turns of each side (default 5)")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--compare", metavar="KEY=VALUE,...", help="changes that make the second configuration")
    modes.add_argument("--sweep", metavar="KEY=VALUE,VALUE,...", action="append", help="values of a key to try")
    return parser.parse_intermixed_args()


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found '{text}'")
    return int(text)


def load_any(path: str, overrides: list[str]) -> Config:
    """The configuration of a run, or of a model alone, completed as `maxlm plan` does for the devices that are here."""
    import jax

    from maxlm.plan.request import completed

    return validate(completed(read(path, overrides), jax.device_count(), path), Config, path)


# --- one configuration ---------------------------------------------------------------------------------------------


def single(config: Config, options: argparse.Namespace) -> None:
    steps = prepare(config, options)
    seconds = list(track(steps.run(options.steps), "timed steps", total=options.steps))
    from timed_steps import peak_gib

    result = described(options, options.overrides) | measured(config, steps, seconds) | {"gib": peak_gib()}
    show(measured_table(result), explained(result), result)


def prepare(config: Config, options: argparse.Namespace) -> "TimedSteps":
    """The compiled and warm step."""
    from timed_steps import TimedSteps

    from maxlm.parallel import runtime

    runtime.setup(config.processes)
    steps = TimedSteps(config, options.documents)
    note(f"compiled the step in {steps.compile_seconds:.1f} s")
    for _ in track(steps.run(options.warmup), "warming up", total=options.warmup):
        pass
    return steps


def described(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """What was asked for, and on what software."""
    packages = {name: version(name) for name in ("maxlm", "jax", "jaxlib")}
    return {
        "config": options.config,
        "overrides": overrides,
        "steps": options.steps,
        "warmup": options.warmup,
        "document_tokens": options.documents,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": packages | {"python": platform.python_version()},
    }


def measured(config: Config, steps: "TimedSteps", seconds: list[float]) -> dict[str, Any]:
    """Medians and what follows from them, beside the prediction."""
    from maxlm.model.counts import parameter_count
    from maxlm.parallel.hardware import chip_of

    facts, step_seconds = steps.facts(), statistics.median(seconds)
    rate, chip = config.train.batch_tokens / step_seconds, chip_of(facts["device_kind"])
    peak = chip and chip.flops["bfloat16"] * facts["devices"]
    chips = facts["devices"] // (chip.devices_per_chip if chip else 1)
    predicted = prediction(config, facts["device_kind"], facts["devices"])
    return facts | {
        "chips": chips,
        "parameters": parameter_count(config.model),
        "seq_len": config.data.seq_len,
        "batch_tokens": config.train.batch_tokens,
        "accumulate": config.train.accumulate,
        "mask_documents": config.data.mask_documents,
        "remat": config.remat.policy,
        "timed_steps": len(seconds),
        "step_seconds": step_seconds,
        "step_seconds_lowest": min(seconds),
        "step_seconds_highest": max(seconds),
        "tokens_per_second": rate,
        "tokens_per_second_per_chip": rate / chips,
        "mfu": facts["flops_per_token"] * rate / peak if peak else None,
        "mfu_formula": MFU_FORMULA,
        "predicted": predicted,
        "step_seconds_over_predicted": step_seconds / predicted["step_seconds"] if predicted else None,
    }


def prediction(config: Config, device_kind: str, devices: int) -> dict[str, Any] | None:
    """What plan predicts for this configuration on these devices; None where it knows no such system."""
    from maxlm.plan.memory import estimate
    from maxlm.plan.roofline import layout_for, predict

    system = system_here(device_kind, devices, config.mesh.slices)
    if system is None:
        return None
    found = predict(config, system)
    names = ("step_seconds", "tokens_per_second_per_chip", "mfu", "mfu_formula", "parts", "overlapped")
    rate, needed = config.train.batch_tokens / found.step_seconds, sum(estimate(layout_for(config, system)).values())
    return {"system": system.name, "tokens_per_second": rate, "gib": needed / 2**30} | {
        name: getattr(found, name) for name in names
    }


def system_here(device_kind: str, devices: int, slices: int) -> "System | None":
    """The system of the hardware table that so many devices of a kind are: of TPUs one of their slices."""
    from maxlm.parallel import hardware

    chip = hardware.chip_of(device_kind)
    if chip is None:
        return None
    if chip.platform == "cuda":
        names, number = [f"{chip.name}x{devices}"], devices
    else:
        names = [name for name in hardware.system_names() if name.startswith(f"{chip.name}-")]
        number = devices // slices
    try:
        return next((found for found in map(hardware.system, names) if found.num_devices == number), None)
    except ConfigError:  # GPUs that make no whole nodes
        return None


def measured_table(result: dict[str, Any]) -> Table:
    predicted = result["predicted"]
    table = Table("", title=f"{compact(result['parameters'])} parameters on {devices(result)}", title_justify="left")
    for name in ("measured", "predicted")[: 2 if predicted else 1]:
        table.add_column(name, justify="right")
    for key, label, form in FIGURES:
        table.add_row(label, *(cell(values.get(key), form) for values in (result, predicted) if values))
    return table


def explained(result: dict[str, Any]) -> list[str]:
    """What the figures of a configuration are of."""
    batch, length = result["batch_tokens"] // result["seq_len"], result["seq_len"]
    axes = " x ".join(f"{name} {size}" for name, size in result["mesh"].items() if size > 1) or "one device"
    remat = result["remat"] if isinstance(result["remat"], str) else ", ".join(result["remat"])
    lines = [
        f"step   {batch:,} x {length:,} tokens, accumulate {result['accumulate']}, mesh {axes}, {result['compute']}",
        f"       attention {result['attention']}, remat {remat}",
        f"time   median of {result['timed_steps']}, {seconds_text(result['step_seconds_lowest'])} to "
        f"{seconds_text(result['step_seconds_highest'])}",
    ]
    if result["mfu"] is None:
        lines.append(f"MFU    none: the peak of {result['device_kind']} is unknown")
    else:
        lines.append(f"MFU    {MFU_FORMULA}, {result['flops_per_token']:.4g} FLOPs per token")
    if result["predicted"] is None:
        lines.append(f"no prediction: {devices(result)} is not in the hardware table")
    if result["skipped"]:
        lines.append(
            f"{result['skipped']} steps were skipped as spikes and made no update: the time is not of full steps"
        )
    return lines


def devices(result: dict[str, Any]) -> str:
    return result["device_kind"] if result["devices"] == 1 else f"{result['devices']} x {result['device_kind']}"


def seconds_text(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.1 else f"{value * 1e3:.2f} ms"


def cell(value: Any, form: Any) -> str:
    return "-" if value is None else form(value)


FIGURES = (
    ("step_seconds", "step time", seconds_text),
    ("tokens_per_second", "tokens/s", "{:,.0f}".format),
    ("tokens_per_second_per_chip", "tokens/s per chip", "{:,.0f}".format),
    ("mfu", "MFU", "{:.1%}".format),
    ("gib", "GiB per chip", "{:.2f}".format),
)


# --- two configurations by turns -----------------------------------------------------------------------------------


def compare(config: Config, options: argparse.Namespace) -> None:
    changes = split(options.compare)
    sides = [(config, options.overrides), (load_any(options.config, options.overrides + changes), changes)]
    prepared = [prepare(side, options) for side, _ in sides]
    seconds: list[list[float]] = [[], []]
    pairs = []
    for pair in track(range(options.pairs), "pairs of turns"):
        rates = [0.0, 0.0]
        for number in ((0, 1), (1, 0))[pair % 2]:  # who goes first changes, so that a drift favours neither
            turn = list(prepared[number].run(options.steps))
            seconds[number] += turn
            rates[number] = sides[number][0].train.batch_tokens / statistics.median(turn)
        pairs.append(rates)
    base, other = (
        measured(side, steps, times) for (side, _), steps, times in zip(sides, prepared, seconds, strict=True)
    )
    ratios = [theirs / ours for ours, theirs in pairs]
    result = described(options, options.overrides) | {
        "compare": changes,
        "base": base,
        "other": other,
        "pairs": pairs,  # tokens/s of both
        "ratio": statistics.median(ratios),
    }
    told = (
        f"tokens/s with {' '.join(changes)}: {result['ratio']:.3f} times as many, the median of {len(pairs)} pairs "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )
    show(compared_table(result), [told], result)


def compared_table(result: dict[str, Any]) -> Table:
    base, other = result["base"], result["other"]
    table = Table("", title=devices(base), title_justify="left")
    table.add_column("as it is", justify="right")
    table.add_column(" ".join(result["compare"]), justify="right")
    for key, label, form in FIGURES[:-1]:  # the peak of memory is one for both
        table.add_row(label, cell(base[key], form), cell(other[key], form))
    return table


# --- many configurations -------------------------------------------------------------------------------------------


def sweep(options: argparse.Namespace) -> None:
    """A process for every combination; what cannot be measured is a row that says why."""
    axes = [axis(text) for text in options.sweep]
    combinations = [dict(zip(dict(axes), values, strict=True)) for values in itertools.product(*dict(axes).values())]
    for changes in combinations:  # a bad value ends the command before anything runs
        load_any(options.config, options.overrides + overrides_of(changes))
    rows = []
    for changes in track(combinations, "configurations"):
        rows.append({"changes": changes} | run_alone(options, overrides_of(changes)))
        note(f"{' '.join(overrides_of(changes))}  {outcome(rows[-1])}")
    found = [row for row in rows if "error" not in row]
    best = max(found, key=lambda row: row["tokens_per_second"], default=None)
    by_value = {key: {value: fastest(found, key, value) for value in values} for key, values in axes}
    result = described(options, options.overrides) | {
        "rows": rows,
        "best": best and best["changes"],
        "best_by": by_value,
    }
    show(swept_table(rows, best), list(fastest_lines(by_value)), result)
    if not found:
        raise MaxlmError("none of the configurations could be measured")


def axis(text: str) -> tuple[str, list[str]]:
    """Key and values of one --sweep."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ConfigError(f"--sweep '{text}': expected key=value,value,... for example remat.policy=none,dots,full")
    return key, split(values)


def split(text: str) -> list[str]:
    """Parts between the commas that stand outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def overrides_of(changes: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in changes.items()]


def run_alone(options: argparse.Namespace, changes: list[str]) -> dict[str, Any]:
    """The figures of a configuration, measured in a new process, or `error` in one line."""
    numbers = [f"--{name}={getattr(options, name)}" for name in ("steps", "warmup", "documents")]
    command = [sys.executable, __file__, options.config, *options.overrides, *changes, *numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    return {
        "error": "out of memory" if done.returncode == DoesNotFitError.exit_code else said[-1].removeprefix("error: "),
        "exit_code": done.returncode,
        "said": "\n".join(said[-20:]),
    }


def outcome(row: dict[str, Any]) -> str:
    return row["error"] if "error" in row else f"{row['tokens_per_second']:,.0f} tokens/s"


def fastest(rows: list[dict], key: str, value: str) -> dict[str, Any] | None:
    """Of the rows with that value, the changes and tokens/s of the best; None where none was measured."""
    rows = [row for row in rows if row["changes"][key] == value]
    best = max(rows, key=lambda row: row["tokens_per_second"], default=None)
    return best and {name: best[name] for name in ("changes", "tokens_per_second")}


def fastest_lines(by_value: dict[str, dict[str, Any]]) -> Iterator[str]:
    for key, values in by_value.items():
        for value, best in values.items():
            told = (
                f"{best['tokens_per_second']:,.0f} tokens/s, {' '.join(overrides_of(best['changes']))}" if best else "-"
            )
            yield f"fastest with {key}={value}: {told}"


def swept_table(rows: list[dict[str, Any]], best: dict[str, Any] | None) -> Table:
    table = Table(*rows[0]["changes"], title=devices(best) if best else None, title_justify="left")
    for _, label, _ in FIGURES:
        table.add_column(label, justify="right")
    table.add_column("")
    for row in rows:
        figures = [cell(row.get(key), form) for key, _, form in FIGURES]
        last = "best" if row is best else row.get("error", "")
        table.add_row(*row["changes"].values(), *figures, last, style="bold" if row is best else None)
    return table


# --- what people see -----------------------------------------------------------------------------------------------


def show(table: Table, lines: list[str], result: dict[str, Any]) -> None:
    """A table and lines for people, and one line of JSON."""
    Console(width=None if Console().is_terminal else 200, markup=False, highlight=False).print(table)
    print("\n".join(lines))
    print(json.dumps(result))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
