"""Runs as they stand on disk, without having been trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maxlm.config import Config, to_yaml
from maxlm.data.schedule import Layout
from maxlm.data.sources import Sources, open_sources
from maxlm.saved import FORMAT_VERSION
from maxlm.train.position import Position, layout

# Two lengths, a step that is filled up, and a rewind are within the first steps.
MIXTURE = [
    {"tokens": 256 * 7 + 96, "weights": {"model": 3, "prep": 1}},
    {"tokens": 512 * 40, "weights": {"model": 1, "prep": 1}, "seq_len": 64, "batch_tokens": 512},
]


class Standing:
    """A run with one checkpoint, and what it was written from."""

    def __init__(self, config: Config, sources: Sources, position: Position):
        self.config, self.sources, self.position = config, sources, position
        self.manifests = {name: source.shards.manifest.hash for name, source in sources.train.items()}
        self.dir = config.run_dir
        self.write()

    def write(self) -> None:
        run = {"version": FORMAT_VERSION, "manifests": self.manifests, "config": self.config.model_dump(mode="json")}
        path = self.dir / "checkpoints" / str(self.position.step) / "run" / "metadata"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run | self.position.to_json()))
        (self.dir / "config.yaml").write_text(to_yaml(self.config))


def advanced(position: Position, steps: int) -> Position:
    for _ in range(steps):
        position = position.advanced()
    return position


@pytest.fixture
def stand(make_config) -> Callable[..., Standing]:
    """stand(mixture, story): a run that stands where `story` says, given the layout of its stages."""

    def stand(mixture: list[dict], story: Callable[[Layout], Position]) -> Standing:
        config = make_config({"data.mixture": mixture})
        sources = open_sources(config.data, config.model.vocab_size, config.seed)
        return Standing(config, sources, story(layout(config, sources.train)))

    return stand


@pytest.fixture
def standing(stand) -> Standing:
    """At step 12, after steps 6 and 7 were undone: the run was at step 7, went back to 5 and on from there."""

    def story(laid: Layout) -> Position:
        saved = advanced(Position.start(laid), 5)
        return advanced(advanced(saved, 2).rewound(saved, laid), 7)

    return stand(MIXTURE, story)


@pytest.fixture
def inspect(run_command) -> Callable[..., tuple[int, str, str]]:
    """inspect(path, "--step", 3) -> (exit code, stdout, stderr)."""
    return lambda *words: run_command("inspect", *words)


@pytest.fixture
def answer(inspect) -> Callable[..., dict]:
    """The JSON of a command that succeeds without a word beside it."""

    def run(*words: str | int | Path) -> dict:
        code, out, err = inspect(*words, "--json")
        assert (code, err) == (0, ""), err
        return json.loads(out)

    return run
