"""The sections of the page on what stages found out: distributions, rules, copies, benchmarks, tokenizers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep.funnel import share
from data_prep.report.excerpts import shortened
from data_prep.report.pictures import bar, bars, colour, histogram, name, section, value
from maxlm.report.elements import table

Json = Mapping[str, Any]


def distributions(found: Json) -> str:
    figures = [histogram(one, f"Length, {one['name']}", _told(one, "bytes"), "bytes") for one in found["lengths"]]
    names = []
    for one in found["columns"]:
        if "values" in one:
            # Languages have a section of their own.
            names += [_named(one)] if one["name"] != "language" else []
        else:
            limit = f"; limit: at {one['side']} {value(one['limit'])}" if "limit" in one else ""
            figures.append(histogram(one, shortened(one["name"], 60).replace("_", " "), _told(one) + limit))
    told = (
        "Lengths of the documents, and every number that a stage found out about them. Light: all documents that "
        "have one; dark: those that are kept in the end. The bars at both ends hold all beyond."
    )
    return section("Distributions", told, f'<div class="hists">{"".join(figures)}</div>', *names)


def _told(one: Json, unit: str = "") -> str:
    scale = ", logarithmic axis" if one["scale"] == "log" else ""
    return f"{one['documents']:,} documents, median {value(one['median'], unit)}{scale}"


def _named(one: Json) -> str:
    most = max(entry[1] for entry in one["values"])
    lines = (
        bar(shortened(str(key), 60), f"{kept:,} of {total:,}", _two(kept, total, most))
        for key, total, kept in one["values"]
    )
    more = f'<p class="soft">{one["others"]:,} more values</p>' if one["others"] else ""
    return f"<h3>{name(one['name']).replace('_', ' ')}</h3>{bars(lines)}{more}"


def _two(kept: int, total: int, most: int) -> Iterable[tuple[float, str, str]]:
    return [
        (kept / most, "var(--kept)", f"kept: {kept:,}"),
        ((total - kept) / most, "var(--all)", f"not kept: {total - kept:,}"),
    ]


def rules(found: Sequence[Json]) -> str:
    parts = []
    for one in found:
        active = [rule for rule in one["rules"] if rule["failing"]]
        idle = [rule for rule in one["rules"] if not rule["failing"]]
        parts.append(
            f"<h3>Profile {name(one['profile'])}: {one['kept']:,} of {one['documents']:,} documents pass all rules</h3>"
            f'<div class="hists">{"".join(map(_rule, active))}</div>'
        )
        if idle:
            parts.append(
                f'<details class="card"><summary>{len(idle)} rules that no document fails</summary>'
                f'<div class="hists">{"".join(map(_rule, idle))}</div></details>'
            )
    told = (
        "What each rule measures, with its limit as a red line: documents on the shaded side fail the rule. Light: all "
        "documents of the profile; dark: those that pass all rules. A document is dropped for the first rule it fails."
    )
    return section("Rules", told, *parts) if parts else ""


def _rule(one: Json) -> str:
    limit = f"at {one['side']} {value(one['limit'])}"
    note = f"{limit} ({one['field']}) · {one['dropped']:,} dropped for it, {one['failing']:,} fail it"
    return histogram(one, one["rule"], note)


def clusters(found: Sequence[Json]) -> str:
    parts = []
    for one in found:
        if one["sizes"]:
            groups = _grouped(one["sizes"])
            most = max(number for _, number in groups)
            lines = (
                bar(label, f"{number:,} cluster{'s' * (number > 1)}", [(number / most, "var(--kept)", label)])
                for label, number in groups
            )
            extra = sum((members - 1) * number for members, number in one["sizes"])
            title = f"Stage {name(one['stage'])}: {extra:,} documents beside the best of each cluster"
            parts.append(f"<h3>{title}</h3>{bars(lines)}")
    told = "How many documents are copies of each other: clusters by their size. Of each cluster the best one stays."
    return section("Copies", told, *parts) if parts else ""


def _grouped(sizes: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """Clusters of 2, 3 and 4 documents, and by powers of two above."""
    found: dict[str, int] = {}
    for members, number in sizes:
        if members <= 4:
            label = f"{members} documents"
        else:
            low = 1 << ((members - 1).bit_length() - 1)
            label = f"{low + 1:,} to {2 * low:,}"
        found[label] = found.get(label, 0) + number
    return list(found.items())


def contamination(found: Json | None) -> str:
    if found is None:
        return ""
    benchmarks = [
        [
            name(key),
            f"{one['items']:,}",
            f"{one['too short']:,}",
            f"{one['found']:,}",
            share(one["found"], one["items"]),
        ]
        for key, one in found["benchmarks"].items()
    ]
    items = [
        [name(one["id"]), name(one["benchmark"]), f"{one['documents']:,}", f"{one['share']:.0%}"]
        for one in found["items"]
    ]
    told = (
        "Items of the benchmarks that were found in the text and removed from it. An item's share is how much of it "
        "stands in the documents."
    )
    body = [table(["Benchmark", "Items", "Too short to look for", "Found", "Share"], benchmarks, range(1, 5))]
    if items:
        body += [f"<h3>The {len(items)} items in most documents, of {found['found']:,}</h3>"]
        body += [table(["Item", "Benchmark", "Documents", "Share"], items, [2, 3])]
    return section("Benchmarks", told, *body)


def tokenizers(found: Sequence[Json] | None) -> str:
    if not found:
        return ""
    most = max(one["bytes_per_token"] for one in found)
    groups: dict[tuple[str, str], list[str]] = {}
    names = sorted({row["tokenizer"] for row in found})
    for one in found:
        look = colour(names.index(one["tokenizer"]))
        figure = f"{one['bytes_per_token']:.2f} bytes per token"
        line = bar(shortened(one["tokenizer"], 60), figure, [(one["bytes_per_token"] / most, look, figure)])
        groups.setdefault((str(one["source"]), str(one["language"])), []).append(line)
    pictures = (
        f"<h3>{name(source)}, {name(language)}</h3>{bars(lines)}" for (source, language), lines in groups.items()
    )
    lines = [
        [name(one["tokenizer"]), name(f"{one['source']}, {one['language']}"), f"{one['bytes_per_token']:.3f}"]
        + [f"{one['fertility']:.3f}" if one["fertility"] is not None else "", _used(one)]
        for one in found
    ]
    head = ["Tokenizer", "Text", "Bytes per token", "Tokens per word", "Vocabulary used"]
    told = (
        "The same texts in the tokens of each tokenizer: more bytes per token make shorter sequences. In Chinese, "
        "which has no spaces, each character counts as a word."
    )
    return section("Tokenizers", told, *pictures, table(head, lines, range(2, 5)))


def _used(one: Json) -> str:
    used = one["vocabulary_used"]
    return f"{used:.1%}" if isinstance(used, float) else f"{used:,}" if used is not None else ""


def synthesis(found: Sequence[Json]) -> str:
    parts = []
    for one in found:
        lines = [[name(key), name(text)] for key, text in _flat(one["values"])][:80]
        parts.append(f"<h3>{name(one['source'])}</h3>{table(['', ''], lines, [1])}")
    told = "Sources whose documents were written by models, as their makers counted them."
    return section("Synthetic sources", told, *parts) if parts else ""


def _flat(values: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """The numbers and short texts of nested mappings, by their path."""
    for key, one in values.items() if isinstance(values, Mapping) else ():
        if isinstance(one, Mapping):
            yield from _flat(one, f"{prefix}{key}: ")
        elif isinstance(one, int) and not isinstance(one, bool):
            yield f"{prefix}{key}", f"{one:,}"
        else:
            yield f"{prefix}{key}", str(one)
