"""Ask a server for new documents made from old ones, and keep those that are good."""

import importlib.util
import os
from typing import Any

from rich.console import Console

from data_prep import pipeline
from data_prep.config import Synthesis
from data_prep.engine import open_workers
from data_prep.funnel import print_funnel
from data_prep.stages import Run
from data_prep.synthesize.ask import End, ask
from data_prep.synthesize.journal import JOURNAL, Journal
from data_prep.synthesize.output import SUMMARY, write_documents, write_summary
from data_prep.synthesize.progress import STAGE, Progress, dollars
from data_prep.synthesize.recipe import Recipe
from data_prep.synthesize.seeds import Seeds
from maxlm.errors import ConfigError, MaxlmError


def synthesize(config: Synthesis, console: Console) -> None:
    """Ask for what is missing; what is answered is on disk and is not asked, or paid, again.

    Ends well where the cost limit is reached: what is there can be used. Raises `MaxlmError` where the server fails or
    refuses, KeyboardInterrupt where it is interrupted; documents of what is answered are written then too.
    """
    for module in ("httpx2", "jsonschema"):
        if importlib.util.find_spec(module) is None:
            raise MaxlmError(f"the module '{module}' is not installed; synthesize needs it: pip install 'maxlm[prep]'")
    recipe, key = Recipe(config), _key(config)
    pipeline.check(config)
    workers = open_workers("native", config.workers)
    with pipeline.locked(config.work), workers:
        this = Run(config, console, workers)
        parts = pipeline.select(this)
        this.prune()
        print_funnel(console, this.funnel, {})
        seeds = Seeds.choose(parts, config.max_seeds, config.seed_characters)
        with Journal(config.directory) as journal:
            with Progress(console, seeds.count) as progress:
                end = ask(config, recipe, key, seeds, journal, progress)
            counts = write_documents(config, recipe, seeds, journal)
            summary = write_summary(config, counts, journal, end.reason)
    _say(this, summary, end)
    if end.error is not None:
        raise end.error
    if end.reason == "interrupted":
        raise KeyboardInterrupt


def _key(config: Synthesis) -> str | None:
    name = config.server.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        found = "not set" if not key else "no key"
        raise ConfigError(f"server.api_key_env: the environment variable {name} is {found}; expected the server's key")
    return key


def _say(this: Run, summary: dict[str, Any], end: End) -> None:
    config: Synthesis = this.config
    dropped = summary["dropped"]
    reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(dropped.items(), key=lambda item: -item[1]))
    this.say(
        STAGE,
        f"{summary['seeds']:,} seeds: {summary['kept']:,} kept, {sum(dropped.values()):,} dropped"
        + (f" ({reasons})" if reasons else "")
        + (f", {summary['left']:,} left" if summary["left"] else ""),
    )
    tokens = f"{summary['input_tokens']:,} tokens in, {summary['output_tokens']:,} out"
    cost = ""
    if config.prices is not None:
        limit = "" if config.max_cost is None else f" of {dollars(config.max_cost)}"
        cost = f", {dollars(summary['cost'] + summary['cost_in_doubt'])}{limit}"
    this.say("asked", f"{summary['requests']:,} requests, {summary['answered']:,} answered, {tokens}{cost}")
    if summary["in_doubt"]:
        paid = f", {dollars(summary['cost_in_doubt'])}" if config.prices is not None else ""
        this.warn(f"in doubt: at most {summary['in_doubt']:,} requests may be paid without an answer{paid}")
    if summary["uncounted"]:
        this.warn(f"the server did not count the tokens of {summary['uncounted']:,} answers; the most is taken")
    this.say("output", f"{config.directory}: documents-*.jsonl, {SUMMARY}; {JOURNAL} holds what was paid: keep it")
    if end.reason == "max_cost":
        this.say("next", f"max_cost is reached, {summary['left']:,} seeds are left; with more the same command goes on")
    elif summary["left"]:
        this.say("next", f"the same command asks about the {summary['left']:,} seeds that are left")
    if not summary["kept"] and not summary["left"]:
        this.warn("no document is kept")
