"""The commands of maxlm: parsing and printing only. Results go to stdout, progress and errors to stderr."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from maxlm.errors import MaxlmError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-train language models: maxlm-prep turns text into shards, maxlm trains on them.",
)
config_app = typer.Typer(no_args_is_help=True, help="Show and describe configurations.")
app.add_typer(config_app, name="config")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the file's, as in optimizer.lr=1e-3."),
]
ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="Run directory, one of its checkpoints, or Hugging Face folder.", show_default=False
    ),
]
Weights = Annotated[
    Literal["params", "ema"],
    typer.Option("--weights", help="The parameters, or the average of them that a run with optimizer.ema kept."),
]
NewDirectory = Annotated[
    Path, typer.Argument(metavar="OUT", help="Directory to make; must not exist.", show_default=False)
]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    fork: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Begin the run NAME with the whole state of the one that CONFIG names."),
    ] = None,
    fork_step: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Its checkpoint of step N; default: the newest.")
    ] = None,
) -> None:
    """Train a model, or go on where its run directory stands."""
    from maxlm.config import load

    loaded = load(config, overrides or [])
    from maxlm.train.loop import train

    train(loaded, fork=fork, fork_step=fork_step)


@app.command("eval")
def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Run directories, checkpoints, or Hugging Face folders; several are shown side by side.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[str] | None, typer.Option(help="Held-out source as NAME=DIRECTORY or NAME=URL; default: those of the run.")
    ] = None,
    sequences: Annotated[int | None, typer.Option(min=1, help="Sequences per source; default: all.")] = None,
    weights: Weights = "params",
    knowledge: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Questions to answer, cloze or choice; may be given often."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Tasks, groups or tags of lm-eval; * stands for anything in a name."),
    ] = None,
    tasks_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="YAML files of further tasks; functions they name run, so it must be trusted."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before a task's question; default: as many as it says.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of a task, the first ones; default: all.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask tasks' questions by the tokenizer's chat template.")
    ] = False,
    mesh: Annotated[
        str | None,
        typer.Option(metavar="AXIS=N,...", help="For questions and tasks, as data=2,tensor=4; default: all over fsdp."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Texts of full length that are read at one time; default: 8 a device.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where answers' figures go; default: eval.jsonl of the run.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask what is finished for this step too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Held-out loss, perplexity and bits per byte, per source; or answers to questions, and tasks of lm-eval.

    Held-out sources are read where nothing else is asked for, or where --data names them. What is finished is written
    at once, so a command that is killed goes on where it was when it is started again.
    """
    from maxlm.evaluate.command import Asked, measure, named, refuse_idle
    from maxlm.evaluate.tables import as_json as plain
    from maxlm.evaluate.tables import of_one, side_by_side
    from maxlm.evaluate.tasks import Wanted

    sources, files = named(data or [], "--data", "DIRECTORY"), named(knowledge or [], "--knowledge", "FILE")
    asked = Asked(sources, sequences, files, mesh, batch, results, again, weights)
    of_tasks = {"--tasks-folder": tasks_folder, "--shots": shots, "--limit": limit}
    if not tasks:
        refuse_idle(of_tasks | {"--apply-chat-template": apply_chat_template}, "--tasks")
    if not (tasks or files):
        refuse_idle(
            {"--mesh": mesh, "--batch": batch, "--results": results, "--again": again}, "--tasks or --knowledge"
        )
    elif not sources:
        refuse_idle({"--sequences": sequences}, "--data, since questions alone are asked")
    if tasks:
        names = tuple(name.strip() for name in tasks.split(",") if name.strip())
        folder = None if tasks_folder is None else str(tasks_folder)
        asked = asked._replace(tasks=Wanted(names, folder, shots, limit, apply_chat_template))
    measured = measure(paths, asked, lambda text: print(text, file=sys.stderr))
    several = len(measured) > 1
    if as_json:
        found = {path: plain(figures) for path, figures in measured.items()}
        print(json.dumps(found if several else next(iter(found.values()))))
        return
    from rich.console import Console

    for table in [side_by_side(measured)] if several else of_one(next(iter(measured.values()))):
        Console().print(table)


@app.command()
def generate(
    path: ModelPath,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue; may be given often. Default: a new document.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help='Prompts, one per line; of a .jsonl file each line\'s "prompt".')
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add to a prompt.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="Divides the logits; 0 takes the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest tokens holding this probability.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text ends before this string; may be given often.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per prompt, on a line.")] = False,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With --json, of every token drawn.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Prompts that are continued at one time.")] = 16,
    mesh: Annotated[
        str | None,
        typer.Option(metavar="AXIS=N,...", help="As data=2,tensor=4; default: what the model and the prompts need."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16 or float32; default: the run's, or as the device computes best.")
    ] = None,
    weights: Weights = "params",
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Answer prompts, the lines of a terminal or stdin by the tokenizer's chat template."
        ),
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat, the system's message.")] = None,
) -> None:
    """Continue texts, printed as they are produced; or hold a conversation.

    With --chat and no prompt, messages are read from the terminal, or from a pipe: text as a user's message, or a JSON
    list of {"role", "content"}.
    """
    from maxlm.config import validate
    from maxlm.evaluate.conversation import answer_texts, converse
    from maxlm.evaluate.generation import for_terminal, generate_texts, read_prompts
    from maxlm.evaluate.sampling import Sampling

    def show(piece: str) -> None:
        sys.stdout.write(for_terminal(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()

    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    options = {"sampling": validate(values, Sampling, "generate"), "max_tokens": max_tokens, "seed": seed}
    options |= {"mesh": mesh, "dtype": dtype, "weights": weights, "stop_strings": stop or []}
    printed = {"batch_size": batch, "as_json": as_json, "logprobs": logprobs}
    texts = (prompt or []) + (read_prompts(prompts) if prompts else [])
    if not chat:
        pieces = generate_texts(path, texts or [""], **printed, **options)
    elif texts or not sys.stdin.isatty():
        pieces = answer_texts(path, texts, system, **printed, **options)
    else:
        converse(path, system, show, **options)
        return
    for piece in pieces:
        show(piece)


@app.command("import")
def import_(
    directory: Annotated[
        Path,
        typer.Argument(metavar="HF_DIR", help="Folder with config.json and safetensors files.", show_default=False),
    ],
    out: NewDirectory,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Type of the parameters; default: as stored.")
    ] = None,
) -> None:
    """Make a Hugging Face model one of maxlm, tensor by tensor; all commands read it like a run's directory."""
    _on_the_host()
    from maxlm.convert.importing import import_folder

    _tell_conversion(import_folder(directory, out, dtype), out)


@app.command()
def export(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory, checkpoint or imported model.", show_default=False),
    ],
    out: NewDirectory,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Type of the tensors; default: as stored."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Their model_type, as llama; default: the plainest that the model is."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Most of one file, as 5GB or 500MB.")] = "5GB",
    weights: Weights = "params",
) -> None:
    """Make a model a Hugging Face folder, tensor by tensor: safetensors, config.json, tokenizer and model card."""
    _on_the_host()
    from maxlm.convert.exporting import export

    _tell_conversion(export(path, out, dtype, family, max_shard_size, weights), out)


@app.command()
def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    out: NewDirectory,
    last: Annotated[int | None, typer.Option(metavar="K", help="Its last K checkpoints.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="N,N,...", help="Its checkpoints of these steps.")] = None,
) -> None:
    """The mean of the parameters of several checkpoints of a run, as a model that all commands but train read."""
    _on_the_host()
    from maxlm.convert.averaging import average, step_numbers

    done = average(run, out, last, None if steps is None else step_numbers(steps))
    rate = done.nbytes / max(done.seconds, 1e-9) / 1e6
    figures = f"{done.parameters:,} parameters, {done.nbytes / 1e9:.2f} GB read in {done.seconds:.1f} s"
    listed = ", ".join(f"{step:,}" for step in done.steps)
    print(f"{out}: the mean of steps {listed}; {figures}, {rate:,.0f} MB/s")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="File to write; default: report.html of the first run.")] = None,
) -> None:
    """One HTML page about one run, or several overlaid."""
    from maxlm.report.html import write_report

    print(write_report(runs, out or runs[0] / "report.html"))


@app.command()
def plan(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file of a run, or of a model alone.", show_default=False)
    ],
    overrides: Overrides = None,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="v5p-128, v6e-64, h100x8, ...; default: the file's hardware.name."),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the train step for that hardware; it need not be there.")
    ] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Look for the fastest mesh, remat and microbatches; compile the best few.")
    ] = False,
    within: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V", help="Restrict the search, as in mesh.tensor=1,2 or remat.policy=full."),
    ] = None,
    compiles: Annotated[int, typer.Option(min=1, help="Candidates of a search that are compiled at a time.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """What a run takes and reads: parameters, memory, time, cost and mixture, on hardware that need not be there."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: a TPU or GPU that is here stays free
    from maxlm.plan.command import plan_command

    plan_command(config, overrides or [], hardware, compile, within or [], compiles if search else None, as_json)


@app.command()
def inspect(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory, one of its checkpoints, or CONFIG.", show_default=False),
    ],
    overrides: Overrides = None,
    step: Annotated[
        int | None, typer.Option(metavar="N", help="The documents of a step, as metrics count them.")
    ] = None,
    example: Annotated[int | None, typer.Option(metavar="I", help="Of that step one row alone, from 0.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="A:B", help="The documents in slots of the run.")] = None,
    document: Annotated[str | None, typer.Option(metavar="ID", help="The steps that read a document.")] = None,
    source: Annotated[str | None, typer.Option(metavar="NAME", help="Of that document; default: any.")] = None,
    mixture: Annotated[bool, typer.Option("--mixture", help="What the whole run reads, by stage and source.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Most lines of the answer.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Whole texts instead of their beginnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, which is complete.")] = False,
) -> None:
    """Which documents a step reads, and which steps read a document: any step, past or to come."""
    from maxlm.inspection.command import inspect_command

    inspect_command(
        run,
        overrides or [],
        step=step,
        example=example,
        tokens=tokens,
        document=document,
        source=source,
        show_mixture=mixture,
        limit=limit,
        full=full,
        as_json=as_json,
    )


@config_app.command("schema")
def schema() -> None:
    """Print the JSON schema of a run's configuration, for editors."""
    from maxlm.config import json_schema

    print(json.dumps(json_schema(), indent=2))


@config_app.command("show")
def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print a configuration with everything that it extends, overrides and leaves to defaults."""
    from maxlm.config import load, to_yaml

    print(to_yaml(load(config, overrides or [])), end="")


@config_app.command("model")
def show_model(path: ModelPath) -> None:
    """Print the model section of a run, checkpoint or Hugging Face folder, as a file for `extends` of a run's."""
    _on_the_host()
    from maxlm.config import as_yaml
    from maxlm.evaluate.load import find_source

    print(as_yaml({"model": find_source(path).model.model_dump(mode="json")}), end="")


def _on_the_host() -> None:
    """Nothing runs on a device: a TPU or GPU that is here stays free."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from maxlm.parallel import runtime

    runtime.setup()


def _tell_conversion(done, out: Path) -> None:
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    rate = done.nbytes / max(done.seconds, 1e-9) / 1e6
    figures = f"{done.parameters:,} parameters, {done.nbytes / 1e9:.2f} GB in {done.seconds:.1f} s, {rate:,.0f} MB/s"
    print(f"{out}: {done.family}, {figures}")


def main() -> None:
    """Run a command; an error that a user can act on is one line and the exit code of its kind."""
    try:
        app()
    except MaxlmError as error:
        error.exit()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
