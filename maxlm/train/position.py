"""Where a run is, as host integers: exact however long it gets, and the same on every process."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maxlm.config import Config
from maxlm.data import order
from maxlm.data.schedule import Layout, Point, Schedule, Span, Stage, Supply
from maxlm.errors import ConfigError


@dataclass(frozen=True)
class Position:
    step: int  # optimizer steps done
    tokens: int  # slots trained on
    target_tokens: int  # targets trained on, up to the last line of the metrics
    examples: int  # examples read; more than those of `tokens` after a rewind, which reads on
    schedule: Schedule
    rewinds: int = 0

    @staticmethod
    def start(layout: Layout) -> "Position":
        return Position(0, 0, 0, 0, layout.begin())

    @property
    def point(self) -> Point:
        return Point(self.step, self.tokens, self.examples)

    @property
    def span(self) -> Span:
        """What the next step reads."""
        return self.schedule.span(self.step)

    @property
    def changes_data(self) -> bool:
        """Whether the next step is the first one of another stage or of an edited mixture."""
        return any(segment.kind in ("stage", "edit") for segment in self.schedule.beginning(self.step))

    def finished(self, total_tokens: int) -> bool:
        """Whether a run of so many slots ends here, or has nothing left to read."""
        return self.step >= self.schedule.steps(total_tokens)

    def advanced(self) -> "Position":
        """After one more step."""
        span = self.span
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + span.tokens,
            examples=self.examples + span.examples,
        )

    def edited(self, layout: Layout) -> "Position":
        """With the stages that the configuration has now, from here on."""
        return replace(self, schedule=layout.edit(self.schedule, self.point))

    def rewound(self, saved: "Position", layout: Layout) -> "Position":
        """At a saved step, with the data going on from here: the span in between is skipped."""
        schedule = layout.rewind(self.schedule, Point(saved.step, saved.tokens, self.examples))
        return replace(saved, examples=self.examples, schedule=schedule, rewinds=self.rewinds + 1)

    def to_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("step", "tokens", "target_tokens", "rewinds")}
        loader = {"order": order.VERSION, "examples": self.examples, "schedule": self.schedule.to_json()}
        return numbers | {"loader": loader}

    @staticmethod
    def from_json(run: dict[str, Any]) -> "Position":
        """Raises `ConfigError` for a run whose data came in the order of another version."""
        loader = run["loader"]
        if (found := loader.get("order", 1)) != order.VERSION:
            raise ConfigError(
                f"the run reads its data in version {found} of the order, this program in version {order.VERSION}; "
                "go on with the program that began it, or start another run"
            )
        numbers = (int(run[name]) for name in ("step", "tokens", "target_tokens"))
        return Position(*numbers, int(loader["examples"]), Schedule.from_json(loader["schedule"]), int(run["rewinds"]))


def layout(config: Config, supplies: Mapping[str, Supply]) -> Layout:
    """The stages of a configuration over its sources."""
    stages = [Stage(stage.tokens, stage.weights, *config.shape_of(stage)) for stage in config.data.mixture]
    return Layout(stages, supplies, config.data.exhausted)
