"""What to change when a step does not fit: the least change whose estimate does."""

from collections.abc import Iterator

from maxlm.config import Config
from maxlm.parallel.hardware import System
from maxlm.plan.space import candidates, needed_bytes

# The compiler may need a little more than the estimate.
MARGIN = 0.95


def remedies(config: Config, system: System) -> str:
    """In words; more chips where nothing on these ones helps."""
    for text, within in _attempts(config):
        if any(_fits(variant, system) for variant in candidates(config, system, within)):
            return text
    return "more chips"


def _attempts(config: Config) -> Iterator[tuple[str, dict]]:
    same = {f"mesh.{axis}": [size] for axis, size in config.mesh.axes.items() if size != -1}
    same |= {"pipeline.microbatches": [config.pipeline.microbatches], "pipeline.repeats": [config.pipeline.repeats]}
    policy, accumulate = config.remat.policy, config.train.accumulate
    if policy != "full":
        yield "remat.policy=full", same | {"remat.policy": ["full"], "train.accumulate": [accumulate]}
    for times in (2, 4, 8, 16):
        more = accumulate * times
        yield f"train.accumulate={more}", same | {"remat.policy": [policy], "train.accumulate": [more]}
        if policy != "full":
            both = same | {"remat.policy": ["full"], "train.accumulate": [more]}
            yield f"remat.policy=full train.accumulate={more}", both
    yield "another mesh, which --search finds", {}


def _fits(config: Config, system: System) -> bool:
    return needed_bytes(config, system) <= MARGIN * system.chip.hbm_bytes
