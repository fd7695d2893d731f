"""The command `maxlm-prep`: parsing and printing only."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from data_prep.config import Pipeline

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
    "limit": "Keep at most max_bytes of a source.",
    "tokenizer": "Train or take a tokenizer.",
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


def _load(pipeline: Path, overrides: list[str] | None) -> "Pipeline":
    from data_prep.config import Pipeline
    from maxlm.config import load
    from maxlm.errors import MaxlmError

    for module in ("daft", "gigatoken"):
        if importlib.util.find_spec(module) is None:
            raise MaxlmError(f"the module '{module}' is not installed; maxlm-prep needs it: pip install 'maxlm[prep]'")
    return load(pipeline, overrides or [], Pipeline)


def _run(pipeline: Path, overrides: list[str] | None, runner: Runner, address: str | None, until: str) -> None:
    from rich.console import Console

    from data_prep.engine import open_workers
    from data_prep.pipeline import run

    config = _load(pipeline, overrides)
    try:
        run(config, Console(), open_workers(runner, config.workers, address), until)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def schema() -> None:
    """Print the JSON schema of a pipeline's YAML file, for editors."""
    from data_prep.config import Pipeline
    from maxlm.config import json_schema

    print(json.dumps(json_schema(Pipeline), indent=2))


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
