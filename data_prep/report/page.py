"""The page as a function of what was gathered: sections in the order in which a reader asks."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from data_prep.console import count, size
from data_prep.funnel import share
from data_prep.report import findings
from data_prep.report.excerpts import shortened, shown
from data_prep.report.pictures import OTHER, STYLE, bar, bars, chips, colour, name, section, swatch, tabs
from data_prep.report.sample_page import samples
from maxlm.report.elements import document, table, tiles

Json = Mapping[str, Any]
# Reasons of a stage that have a colour; the others share one.
COLOURED = 6
MEASURES = {"documents": "documents", "bytes": "text", "tokens": "tokens"}


def page(found: Json) -> str:
    sections = [
        _header(found),
        _summary(found),
        _funnel(found),
        _sources(found),
        _languages(found["languages"]),
        _mix(found["mix"]),
        _outputs(found["outputs"]),
        findings.distributions(found),
        findings.rules(found["rules"]),
        findings.clusters(found["clusters"]),
        findings.contamination(found["contamination"]),
        findings.tokenizers(found["tokenizers"]),
        findings.synthesis(found["synthesis"]),
        samples(found),
    ]
    return document(f"{shown(found['pipeline'])} · maxlm-prep", filter(None, sections), STYLE)


def _header(found: Json) -> str:
    state = found["state"]
    if state["done"]:
        look, text = "finished", "all stages are done"
    else:
        look = "unfinished"
        waits = f"half done: a run would go on with the stage {state['waits_for']}" if state["waits_for"] else ""
        text = waits or f"a run would stop: {state['problem']}"
        text += "; a run is at work" if state["running"] else ""
    sample, of = found["sample"], found["sample"]["of"]
    whole = sample["documents"] == of["documents"]
    read = (
        "histograms and samples are of all documents"
        if whole
        else f"histograms and samples are of {sample['documents']:,} of {of['documents']:,} documents"
    )
    return (
        f'<h1>{name(found["pipeline"])}</h1><div class="soft"><span class="status {look}" style="white-space:normal">'
        f"{escape(shown(text))}</span> &nbsp;·&nbsp; {read}</div>"
    )


def _summary(found: Json) -> str:
    first, last = found["funnel"][0]["before"], found["funnel"][-1]["after"]
    text = _text_before(found["funnel"])["bytes"]
    tokens = sum(one["tokens"] for one in found["outputs"])
    rate = sum(one["bytes"] for one in found["outputs"]) / tokens if tokens else None
    languages = [one for one in found["languages"] if one["kept"]["documents"]]
    main = f"most in {shortened(languages[0]['language'], 20)}" if languages else ""
    return tiles(
        [
            ("Documents read", f"{first['documents']:,}", f"{size(text)} of text"),
            ("Documents kept", f"{last['documents']:,}", share(last["documents"], first["documents"])),
            ("Text kept", size(last["bytes"]), share(last["bytes"], text)),
            ("Tokens", count(tokens) if tokens else "–", f"{rate:.2f} bytes per token" if rate else "not written yet"),
            ("Sources", f"{len(found['sources'])}", ""),
            ("Languages", f"{len(languages)}", main),
        ]
    )


def _text_before(rows: Sequence[Json]) -> Json:
    """What the stages behind reading were given: pages count as HTML until their text is extracted."""
    return next((row["after"] for row in rows if row["stage"] == "extract"), rows[0]["before"])


def _funnel(found: Json) -> str:
    rows = found["funnel"]
    measures = [key for key in MEASURES if rows[-1]["after"][key] is not None]
    pictures = {MEASURES[key]: _funnel_bars(rows, key) for key in measures}
    told = (
        "Each bar is what a stage was given, in the scale of all that was read: blue is kept, the other colours are "
        "what it dropped, by reason, or cut out of documents that stay."
    )
    if "tokens" in measures:
        told += " Tokens are estimated by the bytes per token of what each source's output has in the end."
    details = f'<details class="card"><summary>All reasons as a table</summary>{_funnel_table(rows)}</details>'
    return section("What each stage kept", told, tabs("funnel", pictures), details)


def _funnel_bars(rows: Sequence[Json], key: str) -> str:
    whole = max((_text_before(rows) if key != "documents" else rows[0]["before"])[key] or 0, 1)
    lines = []
    for row in rows:
        after = row["after"][key] or 0
        lost = [(reason, one, "") for reason, one in row["dropped"].items()]
        lost += [(kind, one, " cut") for kind, one in row["changed"].items() if key != "documents"]
        lost = sorted(((one[key] or 0, reason, how) for reason, one, how in lost), key=lambda entry: -entry[0])
        lost = [entry for entry in lost if entry[0] > 0]
        pieces, legend = [(after / whole, "var(--kept)", f"kept: {_measure(after, key)}")], []
        for number, (amount, reason, how) in enumerate(lost):
            look = colour(number) if number < COLOURED else OTHER
            text = f"{shortened(reason, 80)} −{_measure(amount, key)}{how}"
            # Before text was extracted the size of what was dropped is that of its HTML.
            if row["before"][key] <= whole:
                pieces.append((amount / whole, look, text))
            if number < COLOURED:
                legend.append(f"{swatch(look)}{escape(text)}")
        if rest := lost[COLOURED:]:
            legend.append(f"{swatch(OTHER)}{len(rest)} more −{_measure(sum(one[0] for one in rest), key)}")
        if key == "documents":
            legend += [
                f"changed: {name(kind)} {one['documents']:,}" for kind, one in [*row["changed"].items()][:COLOURED]
            ]
        if row["before"][key] > whole:
            legend.append(f"of {_measure(row['before'][key], key)} of HTML")
        lines.append(bar(shown(row["stage"]), f"{_measure(after, key)} · {share(after, whole)}", pieces, legend))
    return bars(lines)


def _measure(number: float, key: str) -> str:
    return f"{number:,}" if key == "documents" else size(number) if key == "bytes" else count(number)


def _with_share(text: str, part: float, whole: float) -> str:
    return f'{text}<span class="share">{share(part, whole)}</span>'


def _funnel_table(rows: Sequence[Json]) -> str:
    lines = []
    for row in rows:
        lines.append(_funnel_line(f"<b>{name(row['stage'])}</b>", row["after"], row["before"], ""))
        lines += [_funnel_line(_why(key), one, row["before"], "−") for key, one in row["dropped"].items()]
        lines += [_funnel_line(_why(f"changed: {key}"), one, row["before"], "~") for key, one in row["changed"].items()]
    return table(["Stage", "Documents", "Text", "Tokens, about"], lines, [1, 2, 3])


def _why(text: str) -> str:
    return f'<span class="why">{name(text)}</span>'


def _funnel_line(label: str, one: Json, whole: Json, sign: str) -> list[str]:
    lost = "" if not sign else "+" if one["bytes"] < 0 else "−"
    return [
        label,
        _with_share(f"{sign}{one['documents']:,}", one["documents"], whole["documents"]),
        _with_share(f"{lost}{size(abs(one['bytes']))}", abs(one["bytes"]), whole["bytes"]) if one["bytes"] else "",
        f"{lost}{count(abs(one['tokens']))}" if one["tokens"] else "",
    ]


def _sources(found: Json) -> str:
    lines = [
        [
            name(one["source"]),
            _amount(one["read"]),
            _kept(one),
            _tokens(one),
            size(one["mean_bytes"]) if one["mean_bytes"] else "",
        ]
        for one in found["sources"]
    ]
    head = ["Source", "Read", "Kept", "Tokens", "Mean length"]
    left = "".join(_left(found, one["source"]) for one in found["sources"])
    told = "Documents and text of each source as they were read and as they are kept; tokens are those of its outputs."
    return section(
        "Sources",
        told + (" What is kept here the mixture chooses from." if found["mix"] else ""),
        table(head, lines, range(1, 5)),
        "<h3>What is left of each source</h3>",
        '<p class="soft">After each stage, as a share of the documents that were read of the source.</p>',
        f'<div class="left-of card">{left}</div>',
    )


def _left(found: Json, source: str) -> str:
    rows = [row for row in found["funnel"] if row["sources"]]
    read = rows[0]["sources"].get(source, {}).get("documents", 0) if rows else 0
    shares = [(row["stage"], row["sources"].get(source, {}).get("documents", 0)) for row in rows]
    told = chips((f"{shown(stage)} {share(left, read) or '0%'}", left / read if read else 0) for stage, left in shares)
    return f'<div><span class="name">{name(source)}</span><div class="chips">{told}</div></div>'


def _amount(one: Json) -> str:
    return f'{one["documents"]:,}<span class="share">{size(one["bytes"])}</span>'


def _kept(one: Json) -> str:
    read, kept = one["read"], one["kept"]
    return f'{_amount(kept)}<span class="share">{share(kept["bytes"], read["bytes"]) or "0%"}</span>'


def _tokens(one: Json) -> str:
    rate = one.get("bytes_per_token")
    return f'{count(one["tokens"])}<span class="share">{rate:.2f} B/token</span>' if one.get("tokens") else ""


def _languages(found: Sequence[Json]) -> str:
    most = max((one["read"]["bytes"] for one in found), default=0) or 1
    lines = [
        [name(one["language"]), _amount(one["read"]), _kept(one), _tokens(one), _mean(one["kept"])] for one in found
    ]
    picture = bars(
        bar(
            shortened(one["language"], 40),
            f"{size(one['kept']['bytes'])} of {size(one['read']['bytes'])}",
            [
                (one["kept"]["bytes"] / most, "var(--kept)", "kept"),
                ((one["read"]["bytes"] - one["kept"]["bytes"]) / most, "var(--all)", "dropped or cut"),
            ],
        )
        for one in found[:12]
    )
    head = ["Language", "Read", "Kept", "Tokens", "Mean length"]
    told = "Text by language: dark is kept, light was dropped or cut."
    everything = f'<details class="card"><summary>As a table</summary>{table(head, lines, range(1, 5))}</details>'
    return section("Languages", told, picture, everything) if found else ""


def _mean(one: Json) -> str:
    return size(one["bytes"] / one["documents"]) if one["documents"] else ""


def _mix(found: Sequence[Json]) -> str:
    lines = [
        [name(one["source"]), f"{one['available']:,}", f"{one['wanted']:,}", f"{one['taken']:,}"]
        + [f"{one['epochs']:.2f}", f"{one['share_wanted']:.1%}", f"{one['share']:.1%}"]
        for one in found
    ]
    head = ["Source", "Available", "Wanted", "Taken", "Epochs", "Share wanted", "Share"]
    told = "Tokens of each source: those that there are, and those that the mixture asks for and takes."
    return section("Mixture", told, table(head, lines, range(1, 7))) if found else ""


def _outputs(found: Sequence[Json]) -> str:
    if not found:
        return ""
    picture = bars(
        bar(
            shortened(one["directory"].rsplit("/", 1)[-1], 60),
            f"{count(one['tokens'])} tokens · {one['share']:.1%}",
            [(one["share"], "var(--kept)", f"{one['tokens']:,} tokens")],
        )
        for one in found
        if one["split"] == "train"
    )
    lines = [
        [name(one["directory"].rsplit("/", 1)[-1]), f"{one['documents']:,}", size(one["bytes"])]
        + [f'{one["tokens"]:,}<span class="share">{one["bytes_per_token"]:.3f} B/token</span>', f"{one['shards']:,}"]
        for one in found
    ]
    head = ["Directory", "Documents", "Text", "Tokens", "Shards"]
    told = "The directories that training reads; the bars are their shares of all tokens to train on."
    return section("Outputs", told, picture, table(head, lines, range(1, 5)))
