"""Sliding windows in config.json: a length, and the layers that have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maxlm.config import ModelConfig
from maxlm.convert.settings import Fields, Source

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Window:
    """One window in all layers; with `switch` only where `use_sliding_window` says so."""

    default: int | None
    switch: bool = False

    def read(self, source: Source, fields: Fields) -> None:
        window = source.count("sliding_window", self.default, null=True)
        if self.switch:
            used, first = source.flag("use_sliding_window", False), source.count("max_window_layers", 0, least=0)
            if used and first:
                raise source.refuse("max_window_layers", first, "0, as versions of transformers differ in its meaning")
            window = window if used else None
        fields["window"] = window

    def write(self, model: ModelConfig) -> dict[str, Any]:
        window = _length(model)
        return {"sliding_window": window} | ({"use_sliding_window": window is not None} if self.switch else {})


@dataclass(frozen=True)
class WindowsEvery:
    """A window in the layers that `layer_types` lists; without such a list in all but every n-th.

    `keys` are names of that number in files, of which the first one is read where there is no list, and written for
    readers that know no lists.
    """

    default: int | None
    every: int
    keys: tuple[str, ...] = ()
    repeated: str | None = None  # a second name of sliding_window, which nothing reads

    def read(self, source: Source, fields: Fields) -> None:
        window, types = source.count("sliding_window", self.default, null=True), source.take("layer_types", None)
        if self.repeated and (again := source.count(self.repeated, window, null=True)) != window:
            raise source.refuse(self.repeated, again, f"{window} as sliding_window says")
        given = {key: every for key in self.keys if (every := source.count(key, None)) is not None}
        if types is None and len(set(given.values())) > 1:
            raise source.refuse(self.keys[0], given, "the same number, as there are no layer_types")
        every = next(iter(given.values()), self.every)
        sliding = [bool((layer + 1) % every) for layer in range(fields["num_layers"])]
        fields["window"] = _windows(source, window, _listed(source, types, sliding))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        sliding = _sliding(model)
        written = {"sliding_window": _length(model), "layer_types": _types(sliding)}
        for every in range(1, len(sliding) + 2) if self.keys else ():
            if sliding == [bool((layer + 1) % every) for layer in range(len(sliding))]:
                return written | {self.keys[0]: every}
        return written


@dataclass(frozen=True)
class WindowsAfter:
    """A window where `use_sliding_window` says so: in the layers that `layer_types` lists, or from the layer
    `max_window_layers` on."""

    default: int | None
    first: int

    def read(self, source: Source, fields: Fields) -> None:
        window = source.count("sliding_window", self.default, null=True)
        first = source.count("max_window_layers", self.first, least=0)
        used = source.flag("use_sliding_window", False)
        sliding = [used and layer >= first for layer in range(fields["num_layers"])]
        sliding = _listed(source, source.take("layer_types", None), sliding)
        fields["window"] = _windows(source, window if used else None, sliding)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        sliding = _sliding(model)
        return {
            "use_sliding_window": any(sliding),
            "sliding_window": _length(model),
            "max_window_layers": sliding.index(True) if any(sliding) else model.num_layers,
            "layer_types": _types(sliding),
        }


def repeating(windows: Sequence[int | None]) -> int | None | tuple[int | None, ...]:
    """The shortest pattern that gives these windows when it is repeated; no tuple where that is one layer."""
    length = next(
        length
        for length in range(1, len(windows) + 1)
        if all(window == windows[layer % length] for layer, window in enumerate(windows))
    )
    return windows[0] if length == 1 else tuple(windows[:length])


def _listed(source: Source, types: list[str] | None, sliding: list[bool]) -> list[bool]:
    """Which layers slide, as the list says where there is one."""
    if types is None:
        return sliding
    listed = isinstance(types, list) and len(types) == len(sliding)
    if not listed or not all(kind in (SLIDING, FULL) for kind in types):
        raise source.refuse("layer_types", types, f"{SLIDING} or {FULL} for each of {len(sliding)} layers")
    return [kind == SLIDING for kind in types]


def _windows(source: Source, window: int | None, sliding: list[bool]) -> int | None | tuple[int | None, ...]:
    if any(sliding) and window is None:
        raise source.refuse("sliding_window", window, "a number of tokens (in use) for the layers that have a window")
    return repeating([window if slides else None for slides in sliding])


def _length(model: ModelConfig) -> int | None:
    return max((window for window in model.window_pattern if window), default=None)


def _sliding(model: ModelConfig) -> list[bool]:
    return [model.window_of(layer) is not None for layer in range(model.num_layers)]


def _types(sliding: list[bool]) -> list[str]:
    return [SLIDING if slides else FULL for slides in sliding]
