"""The compiled step of every shape of batch that a run comes to."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import jax

from maxlm.parallel.compiler import refused_options
from maxlm.train.state import Blueprint, abstract_inputs
from maxlm.train.step import compile_step

Shape = tuple[int, int]  # examples per step, tokens per example


class CompiledSteps:
    """Steps (state, batch, learning rate) -> (state, metrics) by shape, each compiled once; `parameters` are those of a
    proxy run's reference, or none.

    The shapes are compiled one after the other in a thread of their own, in the order in which they are needed: the
    first is waited for, the others come while training goes on. A context manager that waits for a compile in progress.
    """

    def __init__(self, plan: Blueprint, shapes: Sequence[Shape], parameters: tuple = ()):
        self._plan, self._parameters = plan, parameters
        self._thread = ThreadPoolExecutor(1, "compile")
        self._steps: dict[Shape, Future] = {shape: self._thread.submit(self._compile, *shape) for shape in shapes}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __getitem__(self, shape: Shape) -> Callable:
        """The step of a shape; waits until it is compiled."""
        if shape not in self._steps:  # of a stage that was over when the run was started, and that it was wound back to
            self._steps[shape] = self._thread.submit(self._compile, *shape)
        compiled = self._steps[shape].result()
        return lambda state, batch, rate: compiled(state, batch, rate, *self._parameters)

    def _compile(self, batch_size: int, seq_len: int) -> Callable:
        plan = replace(self._plan, config=self._plan.config.with_shape(batch_size, seq_len))
        with jax.set_mesh(plan.mesh), refused_options():
            return compile_step(plan).lower(*abstract_inputs(plan)).compile()
