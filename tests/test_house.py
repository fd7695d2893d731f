"""The shape of the source: who may import whom, and what stays out of it."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxlm.config import ModelConfig

ROOT = Path(__file__).parents[1]
# From the top of the house; a module imports its own room and the floors below.
FLOORS = [
    {"cli", "__init__"},
    {"plan", "inspection"},
    {"train"},
    {"evaluate"},
    {"convert"},
    {"report"},
    {"checkpoint"},
    {"model", "data", "saved"},
    {"parallel"},
    {"config"},
    {"errors"},
]
# Of preparation, likewise; the stages do not know of each other, but for the mixture, which is one of runs of tokens,
# and quality, whose models read files and limit labels as other stages do.
PREPARATION_FLOORS = [
    {"__main__", "__init__"},
    {"cli"},
    {"report"},
    {"status"},
    {"synthesize"},
    {"pipeline"},
    {"mix", "quality"},
    {"ingest", "language", "rules", "dedup", "decontaminate", "privacy", "limit", "tokenize"},
    {"stages"},
    {"engine", "funnel"},
    {"console", "documents"},
    {"lists", "text"},
    {"manifest"},
    {"config"},
]
HOUSES = {"maxlm": FLOORS, "data_prep": PREPARATION_FLOORS}
SHARED_WITH_PREPARATION = {"maxlm.errors", "maxlm.config", "maxlm.data.shards", "maxlm.data.tokenizer"}
# Where documents lie in shards, and what report pages look like.
SHARED_WITH_PREPARATION |= {"maxlm.data.records", "maxlm.report.elements", "maxlm.report.page"}
HEAVY = {"jax", "flax", "optax", "grain", "orbax", "daft", "plotly", "pyarrow", "numpy", "tokenizers", "sentencepiece"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path, house: str) -> str:
    return path.relative_to(ROOT / house).parts[0].removesuffix(".py")


@pytest.mark.parametrize("house", HOUSES)
def test_every_room_has_a_floor(house: str) -> None:
    assert {room_of(path, house) for path in sources(house)} <= set().union(*HOUSES[house])


@pytest.mark.parametrize("house", HOUSES)
def test_imports_run_downward(house: str) -> None:
    floor_of = {room: number for number, rooms in enumerate(HOUSES[house]) for room in rooms}
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(house)
        for name in imports(path)
        if name.startswith(f"{house}.")
        and (room := name.split(".")[1]) != room_of(path, house)
        and floor_of[room] <= floor_of[room_of(path, house)]
    ]
    assert not upward


def test_preparation_shares_the_format_and_nothing_else() -> None:
    foreign = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("data_prep")
        for name in imports(path)
        if name.split(".")[0] == "maxlm" and not SHARED_WITH_PREPARATION & {name, name.rpartition(".")[0]}
    ]
    assert not foreign
    assert not [path for path in sources("maxlm") for name in imports(path) if name.split(".")[0] == "data_prep"]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources("maxlm", "data_prep", "tools", "tests")}
    assert not [f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > 450]


def test_names_of_test_files_differ_over_folders() -> None:
    """The folders are no packages: pytest would collect the first of two files of one name and stop."""
    names = Counter(path.name for path in sources("tests") if path.name.startswith("test_"))
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("tool", sources("tools"), ids=lambda path: path.stem)
def test_tools_import_what_there_is(tool: Path) -> None:
    """Also inside functions: no other test runs all of every tool."""
    for node in ast.walk(ast.parse(tool.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in HOUSES:
            # As `from` does: a name of the module, or a module in it.
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            for name in missing:
                importlib.import_module(f"{node.module}.{name}")


@pytest.mark.parametrize("module", ["maxlm", "maxlm.cli", "data_prep.cli"])
def test_commands_start_without_heavy_imports(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {module.split(".")[0], "sys"} <= set(output.stdout.split())
    assert not HEAVY & set(output.stdout.split())


FAMILIES = re.compile("llama|mistral|mixtral|qwen|gemma|olmo|gpt|deepseek", re.IGNORECASE)


def test_no_behaviour_follows_from_the_name_of_a_model() -> None:
    assert not {"name", "family", "kind", "architecture"} & set(ModelConfig.model_fields)
    compared = []
    # Names of families belong in the tables of the converter alone.
    for path in sources("maxlm"):
        for node in ast.walk(ast.parse(path.read_text())):
            if room_of(path, "maxlm") == "convert" or not isinstance(node, ast.Compare | ast.match_case):
                continue
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            compared += [f"{path.name}: {text}" for text in texts if isinstance(text, str) and FAMILIES.search(text)]
    assert not compared
