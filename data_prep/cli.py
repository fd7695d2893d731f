"""The command `maxlm-prep`: parsing and printing only."""

import contextlib
import importlib.util
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from maxlm.config import Section

    S = TypeVar("S", bound=Section)

Runner = Literal["native", "ray"]

app = typer.Typer(
    name="maxlm-prep",
    help="From raw text to the token shards that maxlm trains on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


PIPELINE = typer.Argument(help="YAML file of the pipeline, for example configs/prep/quickstart.yaml.")
OVERRIDES = typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace those of the file.")
RUNNER = typer.Option(help="native: processes of this machine; ray: a Ray cluster.")
ADDRESS = typer.Option(
    metavar="HOST:PORT",
    help="With ray: the cluster, whose nodes have this program and share the storage of work_dir and of the sources; "
    "without it one is started on this machine.",
)
STAGES_PANEL = "Stages: each runs the pipeline up to it"
# Every stage is a command.
STAGES = {
    "ingest": "Read raw files into shards of text.",
    "extract": "Turn HTML into text; it happens while files are read, so this is the same as ingest.",
    "language": "Find each document's language and script.",
    "exact": "Remove documents whose text is the same.",
    "rules": "Remove lines and documents by rules of quality.",
    "fuzzy": "Remove documents that are almost the same.",
    "lines": "Remove lines and paragraphs that many documents have.",
    "substrings": "Remove long substrings that occur more than once.",
    "decontaminate": "Remove what occurs in benchmarks.",
    "quality": "Score documents by models, and select by the scores.",
    "privacy": "Mask personal data and secrets; the work directory keeps the text as it was read.",
    "limit": "Keep at most max_bytes of a source.",
    "tokenizer": "Train or take a tokenizer.",
    "mix": "Choose how many tokens of each source there are, and in which order.",
    "shards": "Tokenize, shuffle and write the shards that training reads.",
}


@app.command("run")
def run_command(
    pipeline: Annotated[Path, PIPELINE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    runner: Annotated[Runner, RUNNER] = "native",
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Prepare the shards of a pipeline; what an earlier run finished is not done again."""
    _run(pipeline, overrides, runner, address, "shards")


def _add_stage(stage: str, text: str) -> None:
    help_text = f"{text} Runs the pipeline up to this stage, and says what each stage kept."

    @app.command(stage, help=help_text, short_help=text, rich_help_panel=STAGES_PANEL)
    def stage_command(
        pipeline: Annotated[Path, PIPELINE],
        overrides: Annotated[list[str] | None, OVERRIDES] = None,
        runner: Annotated[Runner, RUNNER] = "native",
        address: Annotated[str | None, ADDRESS] = None,
    ) -> None:
        _run(pipeline, overrides, runner, address, "ingest" if stage == "extract" else stage)


for _stage, _text in STAGES.items():
    _add_stage(_stage, _text)


@app.command()
def status(
    pipeline: Annotated[Path, PIPELINE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is done, what is missing and whether a run is at work; makes and changes nothing."""
    from rich.console import Console

    from data_prep.status import look, print_status

    config = _load(pipeline, overrides)
    found = look(config)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print_status(Console(), config, found)


@app.command()
def report(
    pipeline: Annotated[Path, PIPELINE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; without it report.html in the pipeline's output directory."),
    ] = None,
) -> None:
    """Write one HTML page on what every stage kept and dropped, with pictures and samples, and the same as JSON."""
    from rich.console import Console

    from data_prep.report.make import make_report

    print(make_report(_load(pipeline, overrides), Console(stderr=True), output))


@app.command()
def inspect(
    pipeline: Annotated[Path, PIPELINE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    document: Annotated[str, typer.Option(metavar="ID", help="Id of the document.", show_default=False)] = ...,
    source: Annotated[str | None, typer.Option(help="Its source, where several have the id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a document, kept or dropped, with everything that happened to it."""
    from data_prep.report.history import find_history, print_history

    found = find_history(_load(pipeline, overrides), document, source)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_history(found)


@app.command("train-model")
def train_model_command(
    model: Annotated[Path, typer.Argument(help="YAML file of the model, for example configs/prep/model-prose.yaml.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    runner: Annotated[Runner, RUNNER] = "native",
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Train a model that scores documents: a classifier from labelled sources, or a language model for perplexity."""
    from rich.console import Console

    from data_prep.config import QualityModel
    from data_prep.engine import open_workers
    from data_prep.pipeline import train_model

    config = _load(model, overrides, QualityModel)
    with _resumable():
        print(train_model(config, Console(stderr=True), open_workers(runner, config.workers, address)))


@app.command()
def synthesize(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file of the recipe, for example configs/prep/synthesis-qa.yaml.")
    ],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
) -> None:
    """Ask a server for new documents made from old ones, and keep those that are good."""
    from rich.console import Console

    from data_prep.config import Synthesis
    from data_prep.synthesize.run import synthesize

    with _resumable():
        synthesize(_load(recipe, overrides, Synthesis), Console())


def _load(path: Path, overrides: list[str] | None, schema: "type[S] | None" = None) -> "S":
    from data_prep.config import Pipeline
    from maxlm.config import load
    from maxlm.errors import MaxlmError

    for module in ("daft", "gigatoken"):
        if importlib.util.find_spec(module) is None:
            raise MaxlmError(f"the module '{module}' is not installed; maxlm-prep needs it: pip install 'maxlm[prep]'")
    return load(path, overrides or [], schema or Pipeline)


def _run(pipeline: Path, overrides: list[str] | None, runner: Runner, address: str | None, until: str) -> None:
    from rich.console import Console

    from data_prep.engine import open_workers
    from data_prep.pipeline import run

    config = _load(pipeline, overrides)
    with _resumable():
        run(config, Console(), open_workers(runner, config.workers, address), until)
    if until == "shards":
        print(f"report: {shlex.join(['maxlm-prep', 'report', str(pipeline), *(overrides or [])])}")


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def schema(
    of: Annotated[
        Literal["pipeline", "model", "synthesis"], typer.Argument(help="Which YAML file.", show_default=True)
    ] = "pipeline",
) -> None:
    """Print the JSON schema of a YAML file, for editors."""
    from data_prep.config import Pipeline, QualityModel, Synthesis
    from maxlm.config import json_schema

    schemas = {"pipeline": Pipeline, "model": QualityModel, "synthesis": Synthesis}
    print(json.dumps(json_schema(schemas[of]), indent=2))


@app.command()
def verify(directory: Annotated[str, typer.Argument(help="A directory of prepared shards, or its URL.")]) -> None:
    """Compare every file of a directory of shards with its checksum."""
    from maxlm.data.shards import Shards

    shards = Shards(directory)
    shards.verify("checksums")
    found = shards.manifest
    counts = f"{found.documents:,} documents, {found.tokens:,} tokens"
    print(f"{shards.directory}: {len(found.files)} files as written, {counts}")


def main() -> None:
    """Entry point; an error that the user can act on is one line and an exit code."""
    from maxlm.errors import MaxlmError

    try:
        app()
    except MaxlmError as error:
        error.exit()
