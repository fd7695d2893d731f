"""Where a run is, as host integers: exact however long it gets, and the same on every process."""

from dataclasses import dataclass, replace
from typing import Any

from maxlm.config import Config
from maxlm.data import mixture


@dataclass(frozen=True)
class Position:
    step: int  # optimizer steps done
    tokens: int  # slots trained on
    target_tokens: int  # targets trained on, up to the last line of the metrics
    examples: int  # examples read; more than tokens / seq_len after a rewind, which reads on
    schedule: mixture.Schedule
    rewinds: int = 0

    @staticmethod
    def start(config: Config) -> "Position":
        schedule = mixture.start(config.data.mixture[0].weights, config.batch_size, config.data.seq_len)
        return Position(0, 0, 0, 0, schedule)

    def advanced(self, config: Config) -> "Position":
        """After one more step."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + config.batch_size * config.data.seq_len,
            examples=self.examples + config.batch_size,
        )

    def edited(self, config: Config) -> "Position":
        """With the mixture and batch size that the configuration has now, from here on."""
        weights, batch_size = config.data.mixture[0].weights, config.batch_size
        schedule = mixture.append(self.schedule, self.step, self.examples, weights=weights, batch_size=batch_size)
        now, before = schedule[-1], self.schedule[-1]
        unchanged = (now.weights, now.batch_size) == (before.weights, before.batch_size)
        return self if unchanged else replace(self, schedule=schedule)

    def rewound(self, saved: "Position") -> "Position":
        """At a saved step, with the data going on from here: the span in between is skipped."""
        schedule = mixture.append(self.schedule, saved.step, self.examples)
        return replace(saved, examples=self.examples, schedule=schedule, rewinds=self.rewinds + 1)

    def total_steps(self, config: Config) -> int:
        """Steps of the whole run at the present batch size."""
        return self.step + max(0, -(-(config.total_tokens - self.tokens) // config.train.batch_tokens))

    def to_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("step", "tokens", "target_tokens", "rewinds")}
        return numbers | {"loader": {"examples": self.examples, "schedule": mixture.to_json(self.schedule)}}

    @staticmethod
    def from_json(run: dict[str, Any]) -> "Position":
        loader = run["loader"]
        numbers = (int(run[name]) for name in ("step", "tokens", "target_tokens"))
        return Position(*numbers, int(loader["examples"]), mixture.from_json(loader["schedule"]), int(run["rewinds"]))
