"""What a rule is, and how texts are scanned by all of them at once.

One pass of RE2 (google-re2) over all text finds where a value may begin: the leads of all rules are one automaton. At
such a place Python's `re` matches the rules' patterns, and their checks decide. Texts are scanned many at a time, as
UTF-8 with a byte 0 between them; no pattern may match that byte, and no check may look beyond it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from data_prep.config.privacy import TYPES


@dataclass(frozen=True)
class Span:
    """Bytes start..stop are a value of a type; `kind` says more of an IP address."""

    type: str
    start: int
    stop: int
    kind: str = ""

    def moved(self, by: int) -> "Span":
        return replace(self, start=self.start + by, stop=self.stop + by)


@dataclass(frozen=True)
class Rule:
    """`lead` (RE2) is how every match of `pattern` (`re`) begins; `check(data, match)` is a candidate's span, or None.

    Leads are short: counted repeats such as {36,255} make the automaton large, and ten times slower.
    """

    lead: bytes
    pattern: bytes
    check: Callable[[bytes, re.Match], Span | None]

    @cached_property
    def regex(self) -> re.Pattern:
        return re.compile(self.pattern)


def compile_bytes(patterns: Iterable[bytes]) -> Any:
    """An automaton of RE2 for any of the patterns."""
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes as they are
    # Room for the automaton: where it does not fit into the default of 8 MB it is built again and again.
    options.max_mem = 2**26
    return re2.compile(b"|".join(b"(?:%s)" % pattern for pattern in patterns), options)


@dataclass(frozen=True)
class Scanner:
    """Scans by several rules; where more than one matches at a place, the first that its check confirms counts."""

    rules: Sequence[Rule]

    @cached_property
    def leads(self) -> Any:
        return compile_bytes(rule.lead for rule in self.rules)

    def spans(self, data: bytes) -> Iterator[Span]:
        """What the rules find, which may overlap."""
        for lead in self.leads.finditer(data):
            start, stop = lead.span()
            for place in range(start, stop):
                # Where a lead leads to nothing, a value may begin inside it: the scan itself goes on behind it.
                if (place == start or _begins(data, place)) and (span := self._at(data, place)):
                    yield span
                    break

    def _at(self, data: bytes, start: int) -> Span | None:
        for rule in self.rules:
            match = rule.regex.match(data, start)
            if match and (span := rule.check(data, match)):
                return span
        return None


def _begins(data: bytes, place: int) -> bool:
    """Whether a place is not inside a word or a number."""
    return not (data[place - 1 : place].isalnum() and data[place : place + 1].isalnum())


def version() -> list[str]:
    """What enters the key of results beside the rules: numbering plans change with the library."""
    from importlib.metadata import version

    return [version("google-re2"), version("phonenumbers")]


def before(data: bytes, position: int, count: int) -> bytes:
    """At most `count` bytes of the same text in front of a position, in small letters."""
    return data[max(0, position - count) : position].rpartition(b"\0")[2].lower()


def after(data: bytes, position: int, count: int) -> bytes:
    return data[position : position + count].partition(b"\0")[0]


# Numbers behind these words, or behind #, are no phone and no card (Dolma looks for isbn, doi and # likewise).
OTHER_NUMBERS = re.compile(
    rb"(?:#|(?:isbn|issn|doi|pmid|order|invoice|tracking|serial|ticket|issue|\bbug|sku|seed|_rng|\bqq|"
    + "|".join(["订单", "单号", "编号", "书号", "序列号", "货号", "群号"]).encode()
    + rb")(?:[ _-]?(?:numbers?|nos?|nr|id|code))?(?:[ :=.#(\"'-]|"
    + "|".join(["：", "为", "是", "号"]).encode()
    + rb"){0,4})\Z"
)


# A DOI's suffix is any string (ISO 26324).
DOI = re.compile(rb"\b10\.\d{4,9}/\S*\Z")


def is_number_of_its_own(data: bytes, start: int, stop: int) -> bool:
    """Whether digits start..stop are not a piece of a longer number or identifier, and not of something counted."""
    head, tail = before(data, start, 48), after(data, stop, 4)
    if re.search(rb"(?<!tel)(?<!fax)(?<!phone)(?<=\w)-\Z|\d[.,:]\Z", head) or re.match(rb"-\w|[.:]\d|,\d{3}\b", tail):
        return False
    # A term of a formula.
    if data[start:stop].isdigit() and (re.search(rb"[*^%] ?\Z|[\w)] [+] \Z", head) or re.match(rb" ?[*^]", tail)):
        return False
    if b" " in data[start:stop] and (re.search(rb"\d \Z", head) or re.match(rb" \d", tail)):
        return False
    return not (OTHER_NUMBERS.search(head) or DOI.search(head))


def resolved(spans: Iterable[Span]) -> list[Span]:
    """Spans that do not overlap, in order: of those that do, the one whose type stands first in PRECEDENCE stays, and
    of one type the longest."""
    result: list[Span] = []
    together: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start):
        if together and span.start >= max(one.stop for one in together):
            result += _best(together)
            together = []
        together.append(span)
    return result + _best(together)


def _best(together: Sequence[Span]) -> list[Span]:
    if len(together) < 2:
        return list(together)
    kept: list[Span] = []
    for span in sorted(together, key=lambda one: (PRECEDENCE.index(one.type), one.start - one.stop, one.start)):
        if all(span.stop <= other.start or other.stop <= span.start for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda one: one.start)


PRECEDENCE = ("secret", "email", "ipv4", "ipv6", "identity", "card", "phone")
assert sorted(PRECEDENCE) == sorted(TYPES)
