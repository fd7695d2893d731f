"""The command `maxlm-prep`: parsing and printing only."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="maxlm-prep",
    help="From raw text to the token shards that maxlm trains on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("run")
def run_command(
    pipeline: Annotated[
        Path, typer.Argument(help="YAML file of the pipeline, for example configs/prep/quickstart.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace those of the file.")
    ] = None,
) -> None:
    """Prepare the shards of a pipeline; what an earlier run finished is not done again."""
    from rich.console import Console

    from data_prep.config import Pipeline
    from maxlm.config import load
    from maxlm.errors import MaxlmError

    for module in ("daft", "gigatoken"):
        if importlib.util.find_spec(module) is None:
            raise MaxlmError(f"the module '{module}' is not installed; maxlm-prep needs it: pip install 'maxlm[prep]'")
    config = load(pipeline, overrides or [], Pipeline)
    from data_prep.pipeline import run

    try:
        run(config, Console())
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
