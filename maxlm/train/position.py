"""Where a run is, as host integers: exact however long it gets, and the same on every process."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maxlm.config import Config, OnlineConfig
from maxlm.data import order
from maxlm.data.schedule import Layout, Point, Schedule, Span, Stage, Supply
from maxlm.errors import ConfigError
from maxlm.train.online import OnlineState


@dataclass(frozen=True)
class Position:
    step: int  # optimizer steps done
    tokens: int  # slots trained on
    target_tokens: int  # targets trained on, up to the last line of the metrics
    examples: int  # examples read; more than those of `tokens` after a rewind, which reads on
    schedule: Schedule
    rewinds: int = 0
    online: OnlineState | None = None  # of a mixture that follows the losses

    @staticmethod
    def start(layout: Layout, online: OnlineState | None = None) -> "Position":
        return Position(0, 0, 0, 0, layout.begin(), online=online)

    @property
    def point(self) -> Point:
        return Point(self.step, self.tokens, self.examples)

    @property
    def span(self) -> Span:
        """What the next step reads."""
        return self.schedule.span(self.step)

    @property
    def changes_data(self) -> bool:
        """Whether the next step is the first one of another stage, of an edited mixture or without a source."""
        kinds = ("stage", "edit", "exhausted")
        return any(segment.kind in kinds for segment in self.schedule.beginning(self.step))

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

    def edited(self, layout: Layout, mixture: bool = True) -> "Position":
        """With the stages that the configuration has now, from here on; `mixture` says whether their weights differ."""
        online = self.online
        if online and mixture:
            online = online.restarted(layout.stages[-1].weights)
        elif online:
            layout = layout.weighted(online.weights)
        return replace(self, schedule=layout.edit(self.schedule, self.point), online=online)

    def rewound(self, saved: "Position", layout: Layout) -> "Position":
        """At a saved step, with the data going on from here: the span in between is skipped."""
        at = Point(saved.step, saved.tokens, self.examples)
        if saved.online:
            schedule = layout.weighted(saved.schedule.weights(saved.step)).rewind(self.schedule, at)
            schedule = saved._reweighed(schedule, layout)
        else:
            schedule = layout.rewind(self.schedule, at)
        return replace(saved, examples=self.examples, schedule=schedule, rewinds=self.rewinds + 1)

    def counted(
        self, step: int, nll: Mapping[str, float], targets: Mapping[str, int], config: Config, layout: Layout
    ) -> "Position":
        """With the sums of a line of the metrics, those up to `step`: targets counted, an online mixture followed.

        An interval's losses change the mixture one interval after it has ended: by then the line is written, and
        batches have been read ahead.
        """
        position = replace(self, target_tokens=self.target_tokens + sum(targets.values()))
        if position.online is None:
            return position
        online = position.online.add(nll, targets)
        if step % online.every_steps:
            return replace(position, online=online)
        position = replace(position, online=online.updated(config.data.dynamic, step))
        return replace(position, schedule=position._reweighed(position.schedule, layout))

    def known_steps(self, total_tokens: int) -> int:
        """Steps of a run of so many slots whose data is known by now: all of them, but with an online mixture."""
        total = self.schedule.steps(total_tokens)
        return min(total, (self.online.updates + 2) * self.online.every_steps) if self.online else total

    def _reweighed(self, schedule: Schedule, layout: Layout) -> Schedule:
        """A schedule with the weights of the last update, from the step on at which they come into force."""
        step = (self.online.updates + 1) * self.online.every_steps
        if not self.online.updates or step <= self.step:
            return schedule
        return layout.weighted(self.online.weights).reweigh(schedule, step)

    def to_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("step", "tokens", "target_tokens", "rewinds")}
        loader = {"order": order.VERSION, "examples": self.examples, "schedule": self.schedule.to_json()}
        online = {"online": self.online.to_json()} if self.online else {}
        return numbers | {"loader": loader} | online

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
        schedule = Schedule.from_json(loader["schedule"])
        online = OnlineState.from_json(run["online"]) if "online" in run else None
        return Position(*numbers, int(loader["examples"]), schedule, int(run["rewinds"]), online)


def layout(config: Config, supplies: Mapping[str, Supply]) -> Layout:
    """The stages of a configuration over its sources."""
    none = dict.fromkeys(config.data.sources, 0.0)
    stages = [Stage(stage.tokens, none | stage.weights, *config.shape_of(stage)) for stage in config.data.mixture]
    return Layout(stages, supplies, config.data.exhausted)


def online_mixture(config: Config) -> OnlineState | None:
    """The state of an online mixture before the first step; None of other runs."""
    if not isinstance(config.data.dynamic, OnlineConfig):
        return None
    (stage,) = config.data.mixture
    return OnlineState.start(dict.fromkeys(config.data.sources, 0.0) | stage.weights, config.data.dynamic.every_steps)
