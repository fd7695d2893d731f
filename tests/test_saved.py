"""What is read of checkpoints without jax."""

import json
import subprocess
import sys

import pytest

from maxlm import saved
from maxlm.errors import DataError


@pytest.fixture
def run_dir(tmp_path):
    for name in ("4", "12", "16.damaged", "8"):
        directory = tmp_path / "checkpoints" / name / "run"
        directory.mkdir(parents=True)
        (directory / "metadata").write_text(json.dumps({"version": 1, "step": int(name.partition(".")[0])}))
    return tmp_path


def test_the_newest_finished_checkpoint_stands_for_the_run(run_dir):
    newest = saved.named(run_dir)
    assert newest == saved.latest(run_dir) == (run_dir / "checkpoints" / "12")
    assert saved.read_run(newest)["step"] == 12
    assert saved.finished(run_dir / "checkpoints") == [4, 8, 12]


def test_a_checkpoint_stands_for_itself_and_a_directory_without_one_for_none(run_dir, tmp_path_factory):
    assert saved.named(run_dir / "checkpoints" / "8") == run_dir / "checkpoints" / "8"
    assert saved.named(tmp_path_factory.mktemp("empty")) is None
    with pytest.raises(DataError, match="nowhere: no such directory"):
        saved.named(run_dir / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "damaged or incomplete"),
        ("{", "damaged or incomplete"),
        ("[]", "damaged"),
        ('{"version": 7}', "version 7"),
    ],
)
def test_a_damaged_checkpoint_is_named(run_dir, text, message):
    path = run_dir / "checkpoints" / "12" / "run" / "metadata"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=f"checkpoints/12: .*{message}"):
        saved.read_run(saved.latest(run_dir))


def test_reading_it_imports_no_jax():
    code = "import sys, maxlm.saved; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
