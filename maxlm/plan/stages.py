"""The run that is planned as its stages lay it out: what it reads, and steps of which shapes."""

from maxlm.config import Config
from maxlm.data.overview import Overview, overview
from maxlm.data.sources import open_present
from maxlm.train.position import layout

Shape = tuple[int, int]  # examples per step, tokens per example


def laid_out(config: Config) -> Overview:
    """What the run reads; where the data of a source are not here, as if it never ended."""
    supplies, without_data = open_present(config.data, config.seed)
    return overview(layout(config, supplies).begin(), config.total_tokens, supplies, without_data)


def main_shape(steps: dict[Shape, int]) -> Shape:
    """Of the shapes that a run takes steps of, the one with the most slots."""
    return max(steps, key=lambda shape: steps[shape] * shape[0] * shape[1])
