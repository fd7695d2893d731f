"""E-mail and IP addresses."""

import ipaddress
import re

from data_prep.privacy.rules import Rule, Span, after, before

# The part before the @ is read backward from there. RFC 5322 allows more characters, such as / = ?, which in text
# rather stand around an address; 64 bytes is the longest local part (RFC 5321, 4.5.3.1.1), 63 the longest label.
# =3D is an equals sign of quoted-printable mail (RFC 2045, 6.7), %2C a comma of an address on the web.
LOCAL = re.compile(rb"(?:(?<==)3d|(?<=%)[0-9a-f]{2})?(?P<local>[a-z0-9][a-z0-9._+'-]*)\Z")
DOMAIN = rb"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,16}(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})"
# Names of files that have an @ in them, as pictures for dense screens do.
FILES = (b"png", b"jpg", b"jpeg", b"gif", b"svg", b"webp", b"css", b"html", b"json", b"js", b"xml")


def check_email(data: bytes, match: re.Match) -> Span | None:
    local = LOCAL.search(before(data, match.start(), 64))
    suffix, behind = data[match.start() : match.end()].lower().rpartition(b".")[2], after(data, match.end(), 1)
    if local is None or local["local"].endswith(b".") or suffix in FILES:
        return None
    # `weights@x.dot(y)` is a product, and git@ an account that everybody has.
    if local["local"] in (b"git", b"hg", b"svn") or behind == b"(" or behind.isalnum():
        return None
    return Span("email", match.start() - len(local["local"]), match.end())


VERSION = re.compile(
    rb"(?:\b(?:versions?|ver|rev|revision|release|firmware|build|kernel|sections?|sect?|chapter|clause|rfc|table|figure)"
    rb"[ .:=#v-]{0,3}|[a-z]/|[a-z0-9][_-]|\xc2\xa7 ?|(?:"
    + "|".join(["版本", "版"]).encode()
    + rb")(?:[ :]|"
    + "|".join(["号", "为", "是", "："]).encode()
    + rb"){0,3})\Z"
)
ADDRESS = re.compile(
    rb"(?:\bip|addr|address|host|server|from|ping|[\[(/@]|"
    + "|".join(["地址", "服务器"]).encode()
    + rb")[ \t:='\"]{0,4}\Z"
)
# Behind the number of a section, at the beginning of a line, its title follows.
TITLE = re.compile(rb"\.?[ \t]+[A-Z\xe4-\xe9]")


def check_ipv4(data: bytes, match: re.Match) -> Span | None:
    start, stop = match.start(), match.end()
    head = before(data, start, 24)
    if head.endswith(b".") or re.match(rb"\.\d", after(data, stop, 2)):
        return None
    try:
        address = ipaddress.IPv4Address(data[start:stop].decode())
    except ValueError:
        return None
    kind = kind_of(address)
    if kind == "global" and (VERSION.search(head) or re.match(rb"\.[a-z]|-[a-z0-9]", after(data, stop, 2))):
        kind = "version"
    if kind == "global" and not ADDRESS.search(head):
        small = sum(part < 10 for part in address.packed)
        title = re.search(rb"(?:\A|\n)[ \t#]*\Z", head) and TITLE.match(after(data, stop, 4))
        kind = "version" if small >= 3 or (small == 2 and (title or address.packed[0] <= 32)) else kind
    return Span("ipv4", start, stop, kind)


def check_ipv6(data: bytes, match: re.Match) -> Span | None:
    start, stop = match.span()
    if re.search(rb"[\w:.]\Z", before(data, start, 1)) or re.match(rb"[\w:]", after(data, stop, 1)):
        return None
    if re.search(rb"[^:]:\Z", data[start:stop]):
        stop -= 1  # it ends a clause
    try:
        address = ipaddress.IPv6Address(data[start:stop].decode())
    except ValueError:
        return None
    kind = kind_of(address)
    # What is given out begins with 2 or 3 (RFC 4291, 2.4); `abc::def` is a name.
    if kind == "global" and address not in ipaddress.IPv6Network("2000::/3"):
        return None
    return Span("ipv6", start, stop, kind)


DOCUMENTATION = [
    *map(ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"))
]
SHARED = ipaddress.IPv4Network("100.64.0.0/10")  # RFC 6598


def kind_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """An AddressKind, by IANA's registries of special addresses as the standard library has them."""
    if address.is_loopback:
        return "loopback"
    if any(address in network for network in DOCUMENTATION):
        return "documentation"
    if (
        address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.packed[0] in (0, *range(240, 256)))
    ):
        return "reserved"
    if address.is_private or address.is_link_local or address in SHARED:
        return "private"
    return "global"


RULES = (
    Rule(rb"@[A-Za-z0-9]|%40[A-Za-z0-9]", rb"(?:@|%40)" + DOMAIN, check_email),
    Rule(rb"\b\d{1,3}\.\d{1,3}\.\d", rb"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b", check_ipv4),
    # Addresses that are given out, local ones, and ::1: times and names of code have colons too, and are many.
    Rule(
        rb"\b[23][0-9A-Fa-f]{3}:|\b[Ff][C-Fc-f][0-9A-Fa-f]{2}:|::1",
        rb"\b(?:[23][0-9A-Fa-f]{3}|[Ff][C-Fc-f][0-9A-Fa-f]{2}):[0-9A-Fa-f:]{2,34}|::1\b",
        check_ipv6,
    ),
)
