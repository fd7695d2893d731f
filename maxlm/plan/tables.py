"""A plan as tables for the terminal."""

import math
from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from maxlm.config import Config
from maxlm.model import counts
from maxlm.plan import textbook
from maxlm.plan.measured import Measured, TooLarge
from maxlm.plan.plan import GIB, Plan
from maxlm.plan.search import Search
from maxlm.report.mixture import mixture_tables
from maxlm.report.progress import compact

BAR = 30  # characters


def tables(plan: Plan) -> Group:
    """Everything that is known of a plan, from the model to the cost."""
    parts = [
        heading(plan),
        model_table(plan.main.config, plan.config.total_tokens),
        memory_table(plan),
        time_table(plan),
    ]
    measured = plan.main.measured
    if isinstance(measured, Measured):
        parts.append(compiled_table(plan, measured))
    if isinstance(measured, TooLarge):
        parts.append(Text(f"the compiler gave up after {measured.seconds:.0f} s", "bold red"))
    if len(plan.shapes) > 1:
        parts.append(shapes_table(plan))
    if len(plan.config.data.sources) > 1 or len(plan.config.data.mixture) > 1 or not plan.mixture.unknown:
        parts.append(mixture_tables(plan.mixture, plan.config.data))
    return Group(*(item for part in parts for item in (part, "")), verdict(plan))


def heading(plan: Plan) -> Text:
    config, system = plan.main.config, plan.system
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    schedule = [f"accumulate {config.train.accumulate}"] if config.train.accumulate > 1 else []
    if plan.mesh["pipeline"] > 1:
        schedule.append(f"{config.pipeline.microbatches} microbatches, {config.pipeline.repeats} repeats")
    text = Text(f"{config.name} on {system.name}: {plan.chips:,} chips\n", "bold")
    policy = config.remat.policy if isinstance(config.remat.policy, str) else ", ".join(config.remat.policy)
    text.append(f"mesh {mesh}; remat {policy}" + "".join(f"; {part}" for part in schedule) + "\n", "not bold")
    rows = f"{config.batch_size:,} sequences x {config.data.seq_len:,}"
    text.append(f"a step {config.train.batch_tokens:,} tokens = {rows}", "not bold")
    if len(plan.shapes) > 1:
        text.append("; the tables are for these steps, and further down stand all shapes", "not bold")
    return text


def model_table(config: Config, tokens: int) -> Table:
    """Parameters by part, counted, and beside them what the textbook says."""
    model, seq_len = config.model, config.data.seq_len
    total, active = counts.parameter_count(model), counts.active_parameter_count(model)
    table = _table("model", "", "")
    for part, size in counts.parameters_by_part(model).items():
        table.add_row(part, f"{size:,}", f"{size / total:.1%}")
    table.add_section()
    table.add_row("parameters", f"{total:,}", compact(total))
    if active != total:
        table.add_row("active parameters", f"{active:,}", compact(active))
    table.add_row("FLOPs per token", f"{counts.flops_per_token(model, seq_len):.4g}", "forward and backward")
    table.add_section()
    for row in _textbook(config, tokens):
        table.add_row(*row)
    return table


def _textbook(config: Config, tokens: int) -> Iterator[tuple[str, str, str]]:
    """What the literature's formulas say of a model of this size and of this many tokens."""
    model = config.model
    active = counts.active_parameter_count(model)
    embeddings = model.vocab_size * model.embed_dim * (1 if model.tie_embeddings else 2)
    yield "2VH + (2L+1)H + 4LH² + 3LHH'", f"{textbook.parameters_of(model):,}", "parameters of a Llama of these sizes"
    yield "6ND", f"{textbook.training_flops(active, tokens):.3g}", f"FLOPs of {compact(tokens)} tokens"
    best = textbook.optimum_tokens(active)
    yield "20 tokens a parameter", compact(best), f"this run has {tokens / best:.2f} times as many"
    yield "Kaplan's loss", f"{textbook.kaplan_loss(active - embeddings, tokens):.3f}", "nats a token, in their data"
    yield "Chinchilla's loss", f"{textbook.chinchilla_loss(active, tokens):.3f}", "nats a token, in their data"


def memory_table(plan: Plan) -> Table:
    """GiB of one device by part, as bars against what the device has."""
    available = plan.available_gib
    table = _table("memory per device, estimated", "GiB", f"of {available:.1f} GiB")
    for part, size in plan.main.memory.items():
        if size > 0:
            table.add_row(part, f"{size / GIB:.2f}", _bar(size / GIB / available))
    table.add_section()
    total = sum(plan.main.memory.values()) / GIB
    table.add_row("together", f"{total:.2f}", _bar(total / available))
    return table


def time_table(plan: Plan) -> Table:
    """Where the step's seconds go, and what they come to."""
    predicted = plan.main.predicted
    table = _table("time of a step, predicted", "s", "")
    for part, seconds in predicted.parts.items():
        if seconds > 0:
            table.add_row(part, f"{seconds:.3f}", _bar(seconds / predicted.step_seconds))
    table.add_section()
    table.add_row("a step", f"{predicted.step_seconds:.3f}", "")
    for name, seconds in predicted.overlapped.items():
        table.add_row(f"beside it: {name}", f"{seconds:.3f}", _bar(seconds / predicted.step_seconds))
    table.add_section()
    for row in _outcome(plan):
        table.add_row(*row)
    return table


def _outcome(plan: Plan) -> Iterator[tuple[str, str, str]]:
    predicted, steps = plan.main.predicted, sum(steps.count for steps in plan.shapes)
    yield "MFU", f"{predicted.mfu:.1%}", predicted.mfu_formula
    yield "tokens/s per chip", f"{predicted.tokens_per_second_per_chip:,.0f}", ""
    whole = f"for {steps:,} steps, {compact(plan.mixture.tokens)} tokens, without interruptions"
    yield "days", f"{plan.days:,.1f}", whole
    if plan.cost is not None:
        price = plan.config.hardware.price_per_chip_hour
        yield "cost", f"{plan.cost:,.0f}", f"at {price:g} per chip-hour (hardware.price_per_chip_hour)"


def compiled_table(plan: Plan, measured: Measured) -> Table:
    """The compiler's figures beside the estimate's."""
    table = _table(f"compiled in {measured.seconds:.0f} s, per device", "", "")
    for name in ("argument", "output", "temporary", "alias"):
        table.add_row(name, f"{getattr(measured, f'{name}_gib'):.2f} GiB", "")
    table.add_row(
        "their sum", f"{measured.sum_gib:.2f} GiB", "argument + output + temporary - alias; with fragmentation"
    )
    config, estimated = plan.main.config, sum(plan.main.memory.values()) / GIB
    off = f"the estimate is {estimated / measured.peak_gib - 1:+.1%}"
    table.add_row("peak", f"{measured.peak_gib:.2f} GiB", f"of {plan.available_gib:.1f} GiB; {off}")
    table.add_section()
    if measured.work is None:
        table.add_row("FLOPs, traffic", "?", measured.unread)
        return table
    model_flops = counts.flops_per_token(config.model, config.data.seq_len) * config.train.batch_tokens
    share = measured.work.flops * math.prod(plan.mesh.values()) / model_flops
    table.add_row("FLOPs", f"{measured.work.flops:.4g}", f"{share:.2f} times the model's, by what is recomputed")
    for axis, size in measured.bytes_by_axis.items():
        table.add_row(f"sent over {axis}", f"{size / GIB:.2f} GiB", "")
    return table


def shapes_table(plan: Plan) -> Table:
    """The steps of every shape in the run."""
    table = Table(title="steps of the run by shape", title_justify="left", title_style="bold")
    for name in ("a step", "steps", "tokens", "GiB", "s a step", "MFU", "days"):
        table.add_column(name, justify="right")
    for steps in plan.shapes:
        config, predicted = steps.config, steps.predicted
        table.add_row(
            f"{config.batch_size:,} x {config.data.seq_len:,}",
            f"{steps.count:,}",
            compact(steps.count * config.train.batch_tokens),
            f"{steps.needed_gib:.1f}",
            f"{predicted.step_seconds:.3f}",
            f"{predicted.mfu:.1%}",
            f"{steps.seconds / 86400:,.1f}",
        )
    table.add_section()
    total = sum(steps.count for steps in plan.shapes)
    table.add_row("together", f"{total:,}", compact(plan.mixture.tokens), "", "", "", f"{plan.days:,.1f}")
    return table


def verdict(plan: Plan) -> Text:
    needed = f"{plan.largest.needed_gib:.1f} of {plan.available_gib:.1f} GiB"
    if plan.fits:
        known = all(steps.measured for steps in plan.shapes)
        by = "by the compiler" if known else "by the estimate; --compile asks the compiler"
        return Text(f"fits: {needed} ({by})", "bold green")
    return Text(f"does not fit: {needed}", "bold red")


def _table(title: str, second: str, third: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=bool(second or third))
    table.add_column("")
    table.add_column(second, justify="right")
    table.add_column(third)
    return table


def _bar(share: float) -> str:
    """As long as the share, at least a sliver."""
    full, rest = divmod(round(min(share, 1.0) * BAR * 8), 8)
    return ("█" * full + "▏▎▍▌▋▊▉"[rest - 1 : rest] or "▏") + f" {share:.0%}"


def search_table(found: Search) -> Table:
    """The candidates that were compiled, the fastest that fits first."""
    title = f"{found.legal:,} layouts are legal, {found.pruned:,} of them too large by the estimate; compiled:"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("mesh", "remat", "accumulate", "pipeline"):
        table.add_column(name)
    for name in ("GiB estimated", "compiled", "s estimated", "by the program", "MFU"):
        table.add_column(name, justify="right")
    for candidate in found.compiled:
        config, score = candidate.config, candidate.scored
        mesh = " x ".join(f"{axis} {size}" for axis, size in config.mesh.axes.items() if size > 1)
        policy, schedule = config.remat.policy, config.pipeline
        pipelined = f"{schedule.microbatches} x {schedule.repeats}" if config.mesh.pipeline > 1 else ""
        table.add_row(
            mesh,
            policy if isinstance(policy, str) else ", ".join(policy),
            str(config.train.accumulate),
            pipelined,
            f"{candidate.memory_gib:.1f}",
            "-" if candidate.peak_gib is None else f"{candidate.peak_gib:.1f}",
            f"{candidate.predicted.step_seconds:.4g}",
            f"{score.step_seconds:.4g}" if score else "does not fit",
            f"{score.mfu:.1%}" if score else "",
            style="bold green" if candidate is found.best and score else None,
        )
    return table
