"""Where lm-eval's programs run: silent but for our progress, with its seeds, and without a trace in this process."""

import contextlib
import io
import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from maxlm.report.progress import Track

SEEDS = (0, 1234)  # lm-eval's own, of Python's random numbers and of numpy's
IN_PROCESS = "DISABLE_MULTIPROC"  # lm-eval's name for a bootstrap without processes
LIBRARIES = ("lm_eval", "datasets", "evaluate", "huggingface_hub")


@contextlib.contextmanager
def as_lm_eval_runs(track: Track) -> Iterator[None]:
    """Prints and warnings are left out, long loops are shown by `track`, and afterwards random numbers go on as before.

    Standard errors are drawn in this process: forking one that has devices is not safe.
    """
    import datasets
    import tqdm
    from lm_eval.api import task as tasks
    from lm_eval.tasks._index import TaskIndex

    def building(items: Iterable, **_: Any) -> Iterable:
        return track(items, "building requests", unit="questions")

    def drawing(items: Iterable, **_: Any) -> Iterable:
        return track(items, "drawing standard errors")

    def files(root: Any) -> Iterable:
        return track(list(find(root)), "reading lm-eval's list of tasks", unit="files")

    find = TaskIndex._iter_yaml_files
    before = os.environ.get(IN_PROCESS)
    states, levels = (random.getstate(), np.random.get_state()), {name: _level(name) for name in LIBRARIES}
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_replaced(tasks, "tqdm", building))
        stack.enter_context(_replaced(tqdm, "tqdm", drawing))  # where lm-eval imports it inside a function
        stack.enter_context(_replaced(TaskIndex, "_iter_yaml_files", staticmethod(files)))
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(logging.ERROR)
        os.environ[IN_PROCESS] = "1"
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        try:
            yield
        finally:
            if before is None:
                del os.environ[IN_PROCESS]
            random.setstate(states[0])
            np.random.set_state(states[1])
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if not bars:
                datasets.enable_progress_bars()


def _level(name: str) -> int:
    return logging.getLogger(name).level


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
