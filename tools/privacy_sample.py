"""A labelled sample of personal data and secrets, made from published formats, and how well the rules find it.

    python tools/privacy_sample.py [--seed N] [--cases N] [--errors N | --jsonl]

Every value is drawn at random and belongs to nobody. A case is a sentence in English or Chinese, a piece of mail or of
code, around one value of a type, or around something that only looks like one: a hard negative. Formats are those of
RFC 5322 (e-mail), RFC 4291 and 5952 (IPv6), E.164 and national numbering plans, GB 11643 (identity numbers), ISO/IEC
7812 (cards), RFC 7468 and 7519 (keys and tokens), and what providers document of their keys. The sample was written
before the rules, and is not fitted to them.
"""

import argparse
import base64
import itertools
import json
import random
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from privacy_forms import (
    ALPHANUMERIC,
    AMERICAN,
    AMERICAN_AREAS,
    CARDS,
    CHINESE,
    HEX,
    INTERNATIONAL,
    KEYS,
    LABELS,
    LANDLINE,
    LEADS,
    LOOKALIKES,
    MOBILE,
    PLACES,
    REGIONS,
    SUFFIXES,
    SYLLABLES,
    TYPES,
    URLSAFE,
)


@dataclass(frozen=True)
class Case:
    """A text and what is in it: type, first byte and the byte behind the last; `kind` says what was put there."""

    text: str
    spans: tuple[tuple[str, int, int], ...]
    kind: str


class Values:
    """Random values of every type and of what looks like them."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def some(self, alphabet: Sequence[str], count: int) -> str:
        return "".join(self.random.choices(alphabet, k=count))

    def word(self, least: int = 2, most: int = 3) -> str:
        return "".join(self.random.choices(SYLLABLES, k=self.random.randint(least, most)))

    def form(self, forms: str) -> str:
        """A value of one of several forms."""
        form = self.random.choice(forms.strip().splitlines()).replace("\\n", "\n")
        form = re.sub(r"(?<![~%$])\{([a-z]+)\}", lambda match: getattr(self, match[1])(), form)
        for symbol, alphabet in (("~", ALPHANUMERIC), ("%", HEX)):
            form = re.sub(rf"{symbol}\{{(\d+)\}}", lambda match, of=alphabet: self.some(of, int(match[1])), form)
        return re.sub("#", lambda _: self.random.choice(string.digits), form)

    def email(self) -> str:
        first, last, year = self.word(), self.word(), str(self.random.randint(1, 2099))
        local = self.random.choice(
            (
                f"{first}.{last}",
                f"{first}_{last}",
                f"{first}{year}",
                f"{first}-{last}",
                f"{first}+{last}",
                f"{year}{first}",
            )
            + (f"{first.title()}.{last.title()}", f"{first[0]}{last}", f"{first}.{last[0]}.{year}", f"{first}'{last}")
            + (first.upper(), self.form("#########"), self.form("{mobile}########"))
        )
        host = self.random.choice(("", "", "", "mail.", "cs.", "lists.eu."))
        domain = self.random.choice((self.word(3, 4), f"{self.word()}-{self.word()}", f"{self.word(3, 3)}{year[:2]}"))
        return f"{local}@{host}{domain}.{self.random.choice(SUFFIXES)}"

    def ipv4(self) -> str:
        first = self.random.choice([n for n in range(20, 224) if n not in (100, 127, 169, 172, 192, 198, 203)])
        return ".".join(str(n) for n in (first, *(self.random.randint(10, 254) for _ in range(3))))

    def ipv6(self) -> str:
        head = self.random.choice(("2a02", "2600", "2409", "240e", "2a00", "2606"))
        groups = [f"{self.random.randint(16, 65535):x}" for _ in range(7)]
        full = ":".join([head, *groups])
        short = f"{head}:{':'.join(groups[: self.random.randint(1, 3)])}::{groups[5]}"
        return self.random.choice((full, short, full.upper(), f"{head}:{groups[0]}::{groups[1]}:{groups[2]}"))

    def mobile(self) -> str:
        return self.random.choice(MOBILE)

    def area(self) -> str:
        return self.random.choice(AMERICAN_AREAS)

    def office(self) -> str:
        return self.random.choice("23456789") + self.random.choice("02345678") + self.random.choice(string.digits)

    def phone(self) -> str:
        return self.form(self.random.choice((CHINESE, LANDLINE, AMERICAN, INTERNATIONAL)))

    def identity(self) -> str:
        birth = f"{self.random.randint(1940, 2012)}{self.random.randint(1, 12):02d}{self.random.randint(1, 28):02d}"
        body = self.random.choice(REGIONS) + birth + self.form("###")
        check = "10X98765432"[sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(body)) % 11]
        return body + (check.lower() if self.random.random() < 0.2 else check)

    def card(self) -> str:
        prefix, size = self.random.choice(CARDS)
        body = prefix + self.form("#" * (size - len(prefix) - 1))
        number = body + luhn(body)
        edges = [0, 4, 10, size] if size < 16 else [*range(0, size, 4), size]
        groups = [number[start:stop] for start, stop in itertools.pairwise(edges)]
        return self.random.choice((number, " ".join(groups), "-".join(groups)))

    def key(self) -> str:
        """A key that its provider's format gives away."""
        if self.random.random() < 0.1:
            return self.jwt()
        prefix, alphabet, count = self.random.choice(KEYS)
        return self.form(prefix) + self.some(alphabet, count - 1) + self.some(alphabet.strip("-_"), 1)

    def jwt(self) -> str:
        def part(value: dict) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

        header, body = {"alg": "HS256", "typ": "JWT"}, {"sub": self.form("#" * 10), "name": self.word()}
        return f"{part(header)}.{part(body)}.{self.some(URLSAFE, 42)}A"

    def pem(self) -> str:
        kind = self.random.choice(("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED ")) + "PRIVATE KEY"
        lines = "\n".join(self.some(ALPHANUMERIC + "+/", 64) for _ in range(self.random.randint(2, 12)))
        return f"-----BEGIN {kind}-----\n{lines}\n{self.some(ALPHANUMERIC, 22)}==\n-----END {kind}-----"

    def password(self) -> str:
        return self.random.choice(
            (
                self.some(ALPHANUMERIC, self.random.randint(10, 40)),
                self.some(ALPHANUMERIC + "!$%*_-?.+^", self.random.randint(10, 20)),
                f"{self.word().title()}{self.form('###')}{self.random.choice('!?*$')}{self.word(1, 1)}",
                self.some(HEX, 32),
                self.some(ALPHANUMERIC + "+/", 40),
            )
        )

    # What only looks like one.

    def version(self) -> str:
        return ".".join(str(self.random.randint(0, most)) for most in (20, 30, 250, 20))

    def timestamp(self) -> str:
        draw = self.random.randint
        day = f"20{draw(0, 25):02d}-{draw(1, 12):02d}-{draw(1, 28):02d}"
        time = f"{draw(0, 23):02d}:{draw(0, 59):02d}:{draw(0, 59):02d}"
        compact, epoch = f"{day}{time}".replace("-", "").replace(":", ""), str(draw(1_000_000_000, 1_760_000_000))
        return self.random.choice((f"{day} {time}", f"{day}T{time}Z", compact, f"{compact}123", epoch, f"{epoch}###"))


def luhn(body: str) -> str:
    """The check digit (ISO/IEC 7812-1, annex B)."""
    doubled = [int(digit) * (2 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(body))]
    return str(-sum(value // 10 + value % 10 for value in doubled) % 10)


def sample(seed: int = 0, cases: int = 6000) -> Iterator[Case]:
    """Cases of every kind in equal numbers; the same ones for the same arguments."""
    values = Values(seed)
    kinds = [*PLACES, *LOOKALIKES]
    for number in range(cases):
        kind = kinds[number % len(kinds)]
        before, spans = values.random.choice(LEADS), ()
        if kind in LOOKALIKES:
            yield Case(before + values.form(LOOKALIKES[kind]), spans, kind)
            continue
        value = getattr(values, kind)()
        place = values.random.choice(PLACES[kind].strip().splitlines()).replace("\\n", "\n")
        head, tail = place.split("@")
        start = len((before + head).encode())
        yield Case(before + head + value + tail, ((LABELS.get(kind, kind), start, start + len(value.encode())),), kind)


@dataclass
class Score:
    found: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + self.wrong)

    @property
    def recall(self) -> float:
        return self.found / max(1, self.found + self.missed)


Finder = Callable[[Sequence[str]], list[list[tuple[str, int, int]]]]


def score(cases: Sequence[Case], find: Finder) -> tuple[dict[str, Score], list[tuple[str, Case, tuple]]]:
    """Scores by type, and what was missed or wrong.

    A value is found where a span of its type covers all of it and, at each side, at most three bytes more: a bracket.
    """
    scores, errors = defaultdict(Score), []
    for case, spans in zip(cases, find([case.text for case in cases]), strict=True):
        left = list(spans)
        for kind, start, stop in case.spans:
            fits = (s for s in left if s[0] == kind and start - 3 <= s[1] <= start and stop <= s[2] <= stop + 3)
            if match := next(fits, None):
                left.remove(match)
                scores[kind].found += 1
            else:
                scores[kind].missed += 1
                errors.append(("missed", case, (kind, start, stop)))
        for span in left:
            scores[span[0]].wrong += 1
            errors.append(("wrong", case, span))
    return dict(scores), errors


def print_scores(scores: dict[str, Score]) -> None:
    print(f"{'type':10} {'precision':>9} {'recall':>7} {'found':>6} {'wrong':>6} {'missed':>6}")
    for kind in TYPES:
        one = scores.get(kind, Score())
        print(f"{kind:10} {one.precision:9.3f} {one.recall:7.3f} {one.found:6} {one.wrong:6} {one.missed:6}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--errors", type=int, default=0, help="print so many errors too")
    parser.add_argument("--jsonl", action="store_true", help="print the sample instead")
    arguments = parser.parse_args()
    cases = list(sample(arguments.seed, arguments.cases))
    if arguments.jsonl:
        for case in cases:
            print(json.dumps({"text": case.text, "spans": case.spans, "kind": case.kind}, ensure_ascii=False))
        return
    from data_prep.privacy.find import find_all

    scores, errors = score(cases, find_all)
    print_scores(scores)
    for what, case, (kind, start, stop) in errors[: arguments.errors]:
        print(what, kind, repr(case.text.encode()[start:stop].decode()), "in", case.kind, repr(case.text[:150]))


if __name__ == "__main__":
    main()
