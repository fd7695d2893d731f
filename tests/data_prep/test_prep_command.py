"""The command line: exit codes, one-line errors, and the pipelines that come with the project."""

import fcntl
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.config import Pipeline, QualityModel, Synthesis
from maxlm.config import load
from maxlm.data.shards import Shards
from maxlm.errors import DataError, MaxlmError

CONFIGS = Path(__file__).parents[2] / "configs" / "prep"


@pytest.fixture
def file(tmp_path, pipeline):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline().model_dump(mode="json", exclude_none=True)))
    return path


@pytest.mark.parametrize(
    "override, code, message",
    [
        ("tokenizer.vocab_siz=300", 2, "unknown key 'tokenizer.vocab_siz'; the nearest is 'tokenizer.vocab_size'"),
        (
            "tokenizer.vocab_size=100",
            2,
            "tokenizer.vocab_size: found 100; input should be greater than or equal to 259",
        ),
        ("validation.fraction=1.5", 2, "validation.fraction: found 1.5"),
        ("ingest.on_invalid_utf8=ignore", 2, "'replace', 'skip' or 'fail'"),
        ("ingest.sources.web.path=nowhere", 3, "nowhere: no such file or directory"),
        ("ingest.sources.web.include=['*.none']", 3, "empty corpus"),
        ("output=/dev/null/x", 1, "cannot be written"),
        ("work_dir=/proc/nothing", 1, "/proc/nothing/lock: cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(command, file, override, code, message):
    done = command("run", file, override)
    assert done.returncode == code and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1


def test_a_full_disk_is_named_and_earlier_results_stay(tmp_path, command, file, contents):
    """A limit on the size of files stands for the full disk: the system refuses the write in the same way."""
    assert command("run", file).returncode == 0
    before = contents(tmp_path / "out")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = command("run", file, "seed=1", preexec_fn=limit)
    assert done.returncode == 1 and "cannot be written" in done.stderr and str(tmp_path) in done.stderr
    assert contents(tmp_path / "out") == before
    assert command("run", file, "seed=1").returncode == 0


def test_a_second_run_at_once_is_refused_and_says_who_is_at_work(tmp_path, command, file):
    assert command("run", file).returncode == 0
    with open(tmp_path / "out" / ".work" / "test" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = command("run", file)
    assert done.returncode == 1 and re.search(r"another run .* is at work \(process \d+ on \S+\); wait", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_a_stage_of_its_own_prints_what_it_kept_and_what_comes_next(tmp_path, command, file):
    done = command("exact", file, "dedup={exact: true}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not (tmp_path / "out" / "web").exists()
    assert any(line.startswith(" kept of all") for line in lines) and not any("tokenizer:" in line for line in lines)
    assert lines[-1] == "next: tokenizer, shards; `maxlm-prep tokenizer` runs one more, `maxlm-prep run` all of them"
    idle = command("rules", file).stdout
    assert "warning: the pipeline has no section for rules, which did nothing" in idle


def test_help_is_there_for_every_command_without_loading_what_they_use(command):
    code = "import sys; from data_prep.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    shown = command("--help").stdout
    names = re.findall(r"^│ (\w+) {2,}", shown, re.M)
    assert {"run", "status", "verify", "schema", "ingest", "shards"} <= set(names)
    for name in names:
        done = subprocess.run(
            [sys.executable, "-c", code, name, "--help"],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Usage" in done.stdout, done.stderr
        heavy = {"numpy", "pyarrow", "daft", "ray", "numba", "yaml"} & set(done.stdout.split())
        assert not heavy, f"{name} --help loads {heavy}"


def test_verify_names_an_altered_file(tmp_path, command, file):
    command("run", file)
    for place in (tmp_path / "out" / "web", (tmp_path / "out" / "web").as_uri()):
        assert "files as written" in command("verify", place).stdout
    damaged = tmp_path / "out" / "web" / "tokens-00000.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    done = command("verify", tmp_path / "out" / "web")
    assert done.returncode == 3 and "tokens-00000.bin" in done.stderr
    assert command("verify", tmp_path / "nowhere").returncode == 3


def test_verify_reads_every_file_of_the_directory(tmp_path, command, file):
    command("run", file, "shards.shard_tokens=9000", "validation={fraction: 0.1}")
    directory = tmp_path / "out" / "web"
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(files) >= 8
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(DataError, match=path.name):
            Shards(directory).verify("checksums")
        path.write_bytes(data)
    Shards(directory).verify("checksums")


def test_the_schema_describes_every_field(command):
    schema = json.loads(command("schema").stdout)
    definitions = [schema, *schema["$defs"].values()]
    for definition in definitions:
        for name, field in definition["properties"].items():
            assert "description" in field, name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_files_of_the_project_are_valid(path):
    schemas = {"synthesis": Synthesis, "model": QualityModel}
    assert load(path, [], schemas.get(path.stem.partition("-")[0], Pipeline)).ingest.sources


def test_the_quickstart_prepares_the_standard_library(tmp_path, command):
    """On a part of it: the modules of three packages."""
    root = Path(os.__file__).parent
    done = command(
        "run",
        CONFIGS / "quickstart.yaml",
        f"ingest.sources.stdlib.path={root}",
        "ingest.sources.stdlib.include=['json/*.py','email/*.py','asyncio/*.py']",
        "tokenizer.vocab_size=500",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "prepared" / "stdlib" / "manifest.json").is_file()
    assert "bytes/token" in done.stdout


def test_the_package_needs_no_accelerator_library(command, file):
    """Preparation runs on machines without jax."""
    code = "import sys; sys.modules['jax'] = None; from data_prep.cli import main; main()"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(file), "workers=1"],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dedup": {"against": ["nothing"]}}, "nothing: no such directory"),
        ({"decontaminate": {"files": [{"name": "q", "path": "nothing.jsonl"}]}}, "nothing.jsonl: no such file"),
        ({"decontaminate": {"packages": ["no_such_package"]}}, "'no_such_package' is not installed"),
        ({"tokenizer": {"path": "nothing.json"}}, "nothing.json: no tokenizer"),
    ],
)
def test_what_a_late_stage_needs_is_missed_before_the_first_one_works(tmp_path, prepare, section, message):
    with pytest.raises(MaxlmError, match=message):
        prepare(**section)
    assert not (tmp_path / "out").exists()
