"""Five axes of the mesh at once, on more devices than the other tests have.

Run as a program, in a process of its own, this file takes 32 virtual devices.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = (
    (
        "experts",
        {"pipeline": 2, "fsdp": 2, "context": 2, "expert": 2, "tensor": 2},
        {"pipeline": {"microbatches": 2, "repeats": 2}, "parallel": {"context": "ring", "sequence": True}},
    ),
    (
        "biased",
        {"pipeline": 2, "data": 2, "context": 2, "expert": 2, "tensor": 2},
        {"pipeline": {"microbatches": 2}, "parallel": {"zero": 1}},
    ),
)


@pytest.mark.slow
def test_five_axes_at_once_give_what_one_device_gives() -> None:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "train")))
    subprocess.run([sys.executable, __file__], env=os.environ | {"PYTHONPATH": path}, check=True, timeout=600)


def main() -> None:
    import conftest  # noqa: F401

    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("count=8", "count=32")
    from test_meshes import assert_equals_one_device

    for model, mesh, sections in CASES:
        assert_equals_one_device(model, mesh, sections | {"train": {"batch_tokens": 512}})


if __name__ == "__main__":
    main()
