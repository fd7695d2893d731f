"""Phone numbers, identity numbers and bank cards."""

import datetime
import re
from functools import partial

from data_prep.privacy.rules import Rule, Span, is_number_of_its_own


def digits_of(data: bytes, start: int, stop: int) -> str:
    return re.sub(rb"[^0-9Xx]", b"", data[start:stop]).decode().upper()


# Provinces (GB/T 2260), and the numbers of those from Hong Kong, Macao and Taiwan who live on the mainland.
PROVINCES = {11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 41, 42, 43, 44, 45, 46, 50, 51, 52, 53, 54}
PROVINCES |= {61, 62, 63, 64, 65, 71, 81, 82, 83, 91}


def check_identity(data: bytes, match: re.Match) -> Span | None:
    """GB 11643: region, date of birth, sequence, and a check digit by ISO 7064, MOD 11-2."""
    digits = digits_of(data, match.start(), match.end())
    if int(digits[:2]) not in PROVINCES:
        return None
    try:
        datetime.date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))
    except ValueError:
        return None
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(digits[:17]))
    if "10X98765432"[total % 11] != digits[17]:
        return None
    return Span("identity", match.start(), match.end())


# First and last beginnings of issuers' ranges, and the lengths of their numbers (ISO/IEC 7812).
ISSUERS = [
    ("4", "4", (16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("62", "62", (16, 17, 18, 19)),  # UnionPay, and Discover's share of it
    ("81", "81", (16, 17, 18, 19)),
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "659", (16, 19)),
    ("3528", "3589", (16, 19)),  # JCB
    ("300", "305", (14, 16, 19)),  # Diners Club
    ("3095", "3095", (14, 16, 19)),
    ("36", "36", (14, 16, 19)),
    ("38", "39", (14, 16, 19)),
    ("5018", "5018", (16, 18, 19)),  # Maestro
    ("5020", "5020", (16, 18, 19)),
    ("5038", "5038", (16, 18, 19)),
    ("6304", "6304", (16, 18, 19)),
    ("6759", "6763", (16, 18, 19)),
    ("2200", "2204", (16, 19)),  # Mir
]


def check_card(data: bytes, match: re.Match) -> Span | None:
    start, stop = match.start(), match.end()
    digits = digits_of(data, start, stop)
    known = any(low <= digits[: len(low)] <= high and len(digits) in lengths for low, high, lengths in ISSUERS)
    separators = set(re.findall(rb"[ -]", data[start:stop]))
    if not known or not passes_luhn(digits) or len(separators) > 1 or len(set(digits)) < 4:
        return None
    return Span("card", start, stop) if is_number_of_its_own(data, start, stop) else None


def passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


NAMES = "|".join(["电话", "手机", "传真", "热线", "致电", "拨打", "联系方式"])
CALLS = rb"(?i:phone|\btel\b|mobile|\bcell|\bfax|\bcall|\bdial|" + NAMES.encode() + rb")"


def is_valid(number: str, region: str | None) -> bool:
    """By the numbering plan of a region, or of the country whose code follows a +."""
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


def check_international(data: bytes, match: re.Match) -> Span | None:
    """A number with its country's code. What stands behind it with a space between may be another number."""
    start, stop = match.span()
    if not is_number_of_its_own(data, start, stop):
        return None
    while stop - start > 7:
        if is_valid("+" + digits_of(data, start, stop).removeprefix("00"), None):
            return Span("phone", start, stop)
        last = max(map(data[start:stop].rfind, (b" ", b"-", b".", b"(")))
        stop = start + len(data[start : start + max(0, last)].rstrip(b" -.("))
    return None


def check_national(region: str, data: bytes, match: re.Match) -> Span | None:
    """A number in the usual groups of a region; the group `value` is the number without an extension."""
    start, stop = match.start(), match.end()
    digits = digits_of(data, match.start("value"), match.end("value"))
    separators = set(re.findall(rb"(?<=\d)[ .-](?=\d)", data[match.start("value") : match.end("value")]))
    if len(separators) > 1 or not is_number_of_its_own(data, start, stop) or not is_valid(digits, region):
        return None
    return Span("phone", start, stop)


def check_called(regions: tuple[str, ...], data: bytes, match: re.Match) -> Span | None:
    """Digits of any groups behind a word that announces a phone number; the group `value` is the number."""
    start, stop = match.start("value"), match.end("value")
    digits = digits_of(data, start, stop)
    if any(is_valid(digits, region) for region in regions) and is_number_of_its_own(data, start, stop):
        return Span("phone", start, stop)
    return None


AREA = rb"(?:\b0\d{2,3}[ -]|[(]0\d{2,3}[)] ?|" + "（".encode() + rb"0\d{2,3}" + "）".encode() + rb")"
GROUPS = {
    "CN": (
        (rb"\b(?:86[ -]?)?1[3-9]\d[ -]?\d{4}", rb"\b(?P<value>(?:86[ -]?)?1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4}))\b"),
        (AREA + rb"\d{4}", rb"(?P<value>" + AREA + rb"\d{7,8})(?:-\d{1,6})?\b"),
        (rb"\b[48]00[ -]\d{3}", rb"\b(?P<value>[48]00[ -]\d{3}[ -]\d{4})\b"),
    ),
    "US": (
        (
            rb"\b1[ .-][(]?\d{3}|[(]\d{3}[)]|\b\d{3}[ .-]\d{3}[ .-]\d{4}",
            rb"(?P<value>(?:\b1[ .-])?(?:[(]\d{3}[)][ -]?|\b\d{3}[ .-])\d{3}[ .-]\d{4})"
            rb"(?: ?(?:x|[Ee]xt[. ]) ?\d{1,6})?\b",
        ),
    ),
}


def phone_rules(regions: tuple[str, ...]) -> list[Rule]:
    """Numbers with a country's code, those of the regions in their usual groups, and those that a word announces."""
    international = rb"(?:[(]?[+]\d|\b00[1-9])(?:[ ().-]{0,2}\d){6,14}\b"
    rules = [Rule(rb"[(]?[+]\d[\d ().-]{2,5}\d|\b00[1-9]\d", international, check_international)]
    for region in regions:
        rules += [Rule(*patterns, partial(check_national, region)) for patterns in GROUPS.get(region, ())]
    if regions:
        lead = CALLS + rb"[^0-9+(\0]{0,12}"
        called = lead + rb"(?P<value>[(]?\d(?:[ ().-]{0,2}\d){6,13})\b"
        rules.append(Rule(lead + rb"[(]?\d\d", called, partial(check_called, regions)))
    return rules


IDENTITY = rb"\b[1-9]\d{5}[ -]?(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[ -]?\d{3}[0-9Xx]\b"
CARD = rb"\b(?:\d{14,19}|\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}(?:[ -]\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{4,5})\b"
RULES = (
    Rule(rb"\b[1-9]\d{5}[ -]?(?:19|20)\d\d[01]", IDENTITY, check_identity),
    Rule(rb"\b(?:\d{14}|\d{4}[ -]\d{4}[ -]\d{4}|\d{4}[ -]\d{6}[ -]\d{4})", CARD, check_card),
)
