"""A run that is killed and goes on, at every step of runs drawn at random (see tests/drawn_runs.py), without a device.

What training itself does with a position is in test_resume.py and test_stages.py.
"""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from drawn_runs import Walk, layouts, located, walks
from hypothesis import given, settings

from maxlm.data import order
from maxlm.errors import ConfigError
from maxlm.train.position import Position

drawn = settings(derandomize=True, deadline=None, max_examples=40)


def shuffled(value: Any) -> Any:
    """The same JSON with the keys of its objects in another order."""
    if isinstance(value, dict):
        keys = random.Random(len(value)).sample(sorted(value), len(value))
        return {key: shuffled(value[key]) for key in keys}
    return [shuffled(part) for part in value] if isinstance(value, list) else value


def revived(position: Position) -> Position:
    """What another process makes of the JSON in a checkpoint."""
    return Position.from_json(json.loads(json.dumps(shuffled(position.to_json()))))


@given(walks(limits=True))
@drawn
def test_a_position_comes_back_from_a_checkpoint_with_the_same_stream(walk):
    for position in walk.saved:
        again = revived(position)
        assert again == position
        span, names = again.span, sorted(again.schedule.segments[-1].weights)
        assert span == position.span
        read = located(again.schedule, names, span.first_example, span.examples)
        assert read == located(position.schedule, names, span.first_example, span.examples)


@given(layouts(limits=True))
@drawn
def test_a_run_killed_before_every_step_reads_what_one_that_goes_through_reads(layout):
    whole, killed = Walk(layout), Walk(layout)
    whole.steps(25)
    for _ in whole.spans:
        killed.position = revived(killed.position)
        killed.step()
    assert (killed.spans, killed.sources, killed.positions) == (whole.spans, whole.sources, whole.positions)
    assert killed.position == whole.position
    assert killed.position.finished(10**9) == whole.position.finished(10**9)


@given(walks(limits=True))
@drawn
def test_stages_that_say_the_same_change_nothing_at_any_step(walk):
    """Also where a stage, an edit or a rewind begins, a batch was filled up, or the data is at its end."""
    for position, layout in zip(walk.saved, walk.laid_out_by, strict=True):
        if layout:
            scaled = [replace(s, weights={name: 4 * w for name, w in s.weights.items()}) for s in layout.stages]
            assert position.edited(replace(layout, stages=scaled)) == position


def test_the_boundaries_of_interest_are_among_those_that_are_drawn():
    """Every kind of segment begins right at a step at which the runs above are killed."""
    found = set()

    @given(walks(limits=True))
    @settings(drawn, max_examples=120)
    def look(walk):
        for position in walk.saved:
            begins = position.schedule.beginning(position.step)
            found.update(segment.kind for segment in begins)
            found.update("inside" for segment in begins if segment.lead)
            found.update("shape" for segment in begins if segment.first_step and segment.lead == 0)
            found.update("abandoned" for segment in begins if segment.abandoned)

    look()
    kinds = {"start", "stage", "edit", "exhausted", "online", "rewind", "end"}
    assert found == kinds | {"inside", "shape", "abandoned"}


def test_a_position_of_another_order_is_refused():
    with pytest.raises(ConfigError, match=f"version 1 of the order, this program in version {order.VERSION}"):
        Position.from_json({"step": 1, "tokens": 2, "target_tokens": 2, "loader": {"examples": 1, "schedule": []}})
