"""What a family's table is made of, and how tensors are found by it."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from maxlm.config import ModelConfig
from maxlm.convert.layouts import Layout, Shape, Slices
from maxlm.convert.links import Link, Place
from maxlm.convert.settings import Setting


@dataclass(frozen=True)
class Tensor:
    """A tensor of theirs, and the parameters that it holds: dotted names in the decoder's tree.

    In a layer both names are relative to it. `{expert}` stands for every expert's number, by which the parameters of
    ours are indexed. A model without these parameters (biases, an output matrix) has no such tensor.
    """

    name: str
    parameters: str | tuple[str, ...]
    layout: Layout

    @property
    def ours(self) -> tuple[str, ...]:
        return (self.parameters,) if isinstance(self.parameters, str) else self.parameters


@dataclass(frozen=True)
class LeftOut:
    """Tensors in their files that are no parameters; `beside` names one that must be there for that, of {layer}."""

    pattern: str  # of the whole name without prefix, in which a group may be called layer
    why: str
    beside: str | None = None


@dataclass(frozen=True)
class Family:
    """A family's table, read in both directions."""

    name: str  # model_type
    architecture: str  # the class in transformers
    settings: tuple[Setting, ...]  # keys of config.json <-> fields of ModelConfig; later ones may use earlier ones
    fields: dict[str, Any]  # that all its models have
    before: tuple[Tensor, ...]  # embeddings
    layer: tuple[Tensor, ...]  # of every layer: attention and norms
    mlp: tuple[Tensor, ...]  # of a layer without experts
    after: tuple[Tensor, ...]  # the last norm and the output matrix
    experts: tuple[Tensor, ...] = ()  # of a layer with experts
    prefix: str = "model."  # of names but the output matrix's; files of the bare model are without
    layers: str = "model.layers.{layer}."  # before the names of a layer's tensors
    left_out: tuple[LeftOut, ...] = ()

    @property
    def output(self) -> str:
        """Name of the output matrix, which the files of a model with tied embeddings may have or not."""
        return self.after[-1].name


class Names(NamedTuple):
    """What the tensors in a folder are."""

    found: dict[str, str]  # by the name of its link a tensor's name in the files
    copies: dict[str, str]  # a tensor that must equal another one to the bit: its name and the other one's
    left_out: dict[str, str]  # a tensor that is no parameter, and why it is left out
    missing: list[str]
    extra: list[str]


def build_links(family: Family, model: ModelConfig) -> list[Link]:
    shapes = _parameter_shapes(model)
    found = list(_links(family, model, shapes))
    _check_cover(family, found, shapes)
    return found


def match(family: Family, model: ModelConfig, expected: Iterable[str], names: Iterable[str]) -> Names:
    """Compare the names of the links with those in the files."""
    expected, names = list(expected), list(names)
    present = set(names)
    found = {}
    for name in expected:
        bare = name.removeprefix(family.prefix)
        if name in present or bare in present:
            found[name] = name if name in present else bare
    copies, left_out, extra = {}, {}, []
    for name in sorted(present - set(found.values())):
        if model.tie_embeddings and name == family.output and family.before[0].name in found:
            copies[name] = found[family.before[0].name]
        elif (why := _why_left_out(family, model, name, present)) is not None:
            left_out[name] = why
        else:
            extra.append(name)
    return Names(found, copies, left_out, [name for name in expected if name not in found], extra)


def _why_left_out(family: Family, model: ModelConfig, name: str, present: set[str]) -> str | None:
    prefix = family.prefix if name.startswith(family.prefix) else ""
    for rule in family.left_out:
        if (matched := re.fullmatch(rule.pattern, name.removeprefix(prefix))) is None:
            continue
        layer = int(matched.groupdict().get("layer", -1))
        if rule.beside is None or (layer >= model.num_layers and prefix + rule.beside.format(layer=layer) in present):
            return rule.why
    return None


def _parameter_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Shapes of the decoder's parameters by their dotted paths."""
    from maxlm.model import decoder

    def flat(tree: dict, above: str = "") -> Iterator[tuple[str, Shape]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{above}{key}.")
            else:
                yield f"{above}{key}", tuple(value.shape)

    return dict(flat(decoder.abstract(model)[1]))


def _links(family: Family, model: ModelConfig, shapes: dict[str, Shape]) -> Iterator[Link]:
    for tensor in family.before:
        yield from _link(tensor, "", "", (), model, shapes)
    first, period = model.first_layers, model.period
    for layer in range(model.num_layers):
        block, position = divmod(layer - first, period)
        ours, index = (f"first.{layer}.", ()) if layer < first else (f"blocks.{position}.", (block,))
        theirs = family.layers.format(layer=layer)
        for tensor in (*family.layer, *(family.experts if model.has_experts(layer) else family.mlp)):
            yield from _link(tensor, theirs, ours, index, model, shapes)
    for tensor in family.after:
        yield from _link(tensor, "", "", (), model, shapes)


def _link(
    tensor: Tensor, theirs: str, ours: str, index: tuple[int, ...], model: ModelConfig, shapes: dict[str, Shape]
) -> Iterator[Link]:
    paths = [ours + name for name in tensor.ours]
    if not any(path in shapes for path in paths):
        return
    routed = "{expert}" in tensor.name
    inner = tuple(shapes[path][len(index) + routed :] for path in paths)
    slices = Slices(inner, model.rope_dim)
    for expert in range(model.moe.num_experts) if routed else (None,):
        at = index if expert is None else (*index, expert)
        yield Link(
            theirs=theirs + tensor.name.format(expert=expert),
            shape=tensor.layout.shape(slices),
            ours=tuple(Place(tuple(path.split(".")), at) for path in paths),
            split=partial(tensor.layout.split, slices=slices),
            join=partial(tensor.layout.join, slices=slices),
        )


def _check_cover(family: Family, links: list[Link], shapes: dict[str, Shape]) -> None:
    """Every number of ours must stand in one tensor of theirs: a fault of a table otherwise."""
    places = [place for link in links for place in link.ours]
    names = [link.theirs for link in links]
    if len(set(places)) < len(places) or len(set(names)) < len(names):
        raise RuntimeError(f"table of {family.name}: a tensor or a parameter stands in it twice")
    covered = dict.fromkeys(shapes, 0)
    for place in places:
        path = ".".join(place.path)
        covered[path] += math.prod(shapes[path][len(place.index) :])
    if wrong := [path for path, shape in shapes.items() if covered[path] != math.prod(shape)]:
        raise RuntimeError(f"table of {family.name} does not cover {', '.join(wrong)}")
