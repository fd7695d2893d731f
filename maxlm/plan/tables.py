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
from maxlm.plan.roofline import Prediction
from maxlm.plan.search import Search
from maxlm.report.progress import compact

BAR = 30  # characters


def tables(plan: Plan) -> Group:
    """Everything that is known of a plan, from the model to the cost."""
    parts = [heading(plan), model_table(plan.config), memory_table(plan), time_table(plan)]
    if isinstance(plan.measured, Measured):
        parts.append(compiled_table(plan, plan.measured))
    if isinstance(plan.measured, TooLarge):
        parts.append(Text(f"the compiler gave up after {plan.measured.seconds:.0f} s", "bold red"))
    return Group(*(item for part in parts for item in (part, "")), verdict(plan))


def heading(plan: Plan) -> Text:
    config, system = plan.config, plan.system
    chips = system.num_chips * config.mesh.slices
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    schedule = [f"accumulate {config.train.accumulate}"] if config.train.accumulate > 1 else []
    if plan.mesh["pipeline"] > 1:
        schedule.append(f"{config.pipeline.microbatches} microbatches, {config.pipeline.repeats} repeats")
    text = Text(f"{config.name} on {system.name}: {chips:,} chips\n", "bold")
    policy = config.remat.policy if isinstance(config.remat.policy, str) else ", ".join(config.remat.policy)
    text.append(f"mesh {mesh}; remat {policy}" + "".join(f"; {part}" for part in schedule) + "\n", "not bold")
    rows = f"{config.batch_size:,} sequences x {config.data.seq_len:,}"
    text.append(f"a step {config.train.batch_tokens:,} tokens = {rows}", "not bold")
    return text


def model_table(config: Config) -> Table:
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
    for row in _textbook(config):
        table.add_row(*row)
    return table


def _textbook(config: Config) -> Iterator[tuple[str, str, str]]:
    """What the literature's formulas say of a model of this size and of this many tokens."""
    model, tokens = config.model, config.total_tokens
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
    for part, size in plan.memory.items():
        if size > 0:
            table.add_row(part, f"{size / GIB:.2f}", _bar(size / GIB / available))
    table.add_section()
    total = sum(plan.memory.values()) / GIB
    table.add_row("together", f"{total:.2f}", _bar(total / available))
    return table


def time_table(plan: Plan) -> Table:
    """Where the step's seconds go, and what they come to."""
    predicted = plan.predicted
    table = _table("time of a step, predicted", "s", "")
    for part, seconds in predicted.parts.items():
        if seconds > 0:
            table.add_row(part, f"{seconds:.3f}", _bar(seconds / predicted.step_seconds))
    table.add_section()
    table.add_row("a step", f"{predicted.step_seconds:.3f}", "")
    for name, seconds in predicted.overlapped.items():
        table.add_row(f"beside it: {name}", f"{seconds:.3f}", _bar(seconds / predicted.step_seconds))
    table.add_section()
    for row in _outcome(plan.config, predicted):
        table.add_row(*row)
    return table


def _outcome(config: Config, predicted: Prediction) -> Iterator[tuple[str, str, str]]:
    yield "MFU", f"{predicted.mfu:.1%}", predicted.mfu_formula
    yield "tokens/s per chip", f"{predicted.tokens_per_second_per_chip:,.0f}", ""
    yield "days", f"{predicted.days:,.1f}", f"for {compact(config.total_tokens)} tokens, without interruptions"
    if predicted.cost is not None:
        price = config.hardware.price_per_chip_hour
        yield "cost", f"{predicted.cost:,.0f}", f"at {price:g} per chip-hour (hardware.price_per_chip_hour)"


def compiled_table(plan: Plan, measured: Measured) -> Table:
    """The compiler's figures beside the estimate's."""
    table = _table(f"compiled in {measured.seconds:.0f} s, per device", "", "")
    for name in ("argument", "output", "temporary", "alias"):
        table.add_row(name, f"{getattr(measured, f'{name}_gib'):.2f} GiB", "")
    table.add_row(
        "their sum", f"{measured.sum_gib:.2f} GiB", "argument + output + temporary - alias; with fragmentation"
    )
    estimated = sum(plan.memory.values()) / GIB
    off = f"the estimate is {estimated / measured.peak_gib - 1:+.1%}"
    table.add_row("peak", f"{measured.peak_gib:.2f} GiB", f"of {plan.available_gib:.1f} GiB; {off}")
    table.add_section()
    if measured.work is None:
        table.add_row("FLOPs, traffic", "?", measured.unread)
        return table
    model_flops = counts.flops_per_token(plan.config.model, plan.config.data.seq_len) * plan.config.train.batch_tokens
    share = measured.work.flops * math.prod(plan.mesh.values()) / model_flops
    table.add_row("FLOPs", f"{measured.work.flops:.4g}", f"{share:.2f} times the model's, by what is recomputed")
    for axis, size in measured.bytes_by_axis.items():
        table.add_row(f"sent over {axis}", f"{size / GIB:.2f} GiB", "")
    return table


def verdict(plan: Plan) -> Text:
    if plan.fits:
        by = "by the compiler" if plan.measured else "by the estimate; --compile asks the compiler"
        return Text(f"fits: {plan.needed_gib:.1f} of {plan.available_gib:.1f} GiB ({by})", "bold green")
    return Text(f"does not fit: {plan.needed_gib:.1f} of {plan.available_gib:.1f} GiB", "bold red")


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
