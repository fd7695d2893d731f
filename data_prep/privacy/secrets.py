"""Keys, tokens, private keys, and passwords that are assigned.

Formats are those that providers document of their keys. What no format gives away is found by the name that it is
assigned to, and by its entropy, as detect-secrets does.
"""

import base64
import json
import math
import re
from collections import Counter

from data_prep.privacy.rules import Rule, Span, after, before

PROVIDERS = {
    rb"A(?:KIA|SIA|BIA|CCA)": rb"[A-Z2-7]{16}",  # AWS
    rb"gh[pousr]_": rb"[A-Za-z0-9]{36,255}",  # GitHub
    rb"github_pat_": rb"[A-Za-z0-9_]{36,255}",
    rb"gl(?:pat|rt|dt|ptt|ft|oas|soat)-": rb"[A-Za-z0-9_-]{20,255}",  # GitLab
    rb"xox[abeoprs]-": rb"[A-Za-z0-9-]{20,255}",  # Slack
    rb"xapp-\d-": rb"[A-Za-z0-9-]{20,255}",
    rb"hooks\.slack\.com/": rb"(?:services|workflows|triggers)/[A-Za-z0-9_/]{20,255}",
    rb"AIza": rb"[A-Za-z0-9_-]{35}",  # Google
    rb"GOCSPX-": rb"[A-Za-z0-9_-]{28}",
    rb"ya29\.": rb"[A-Za-z0-9_-]{20,255}",
    # OpenAI, Anthropic, OpenRouter
    rb"\bsk-": rb"(?:(?:proj|svcacct|admin|ant-[a-z0-9]{2,8}|or-v1)-[A-Za-z0-9_-]{20,255}|[A-Za-z0-9]{32,128})",
    rb"[rs]k_(?:live|test)_": rb"[A-Za-z0-9]{16,255}",  # Stripe
    rb"\bhf_": rb"[A-Za-z0-9]{34}",  # Hugging Face
    rb"npm_": rb"[A-Za-z0-9]{36}",
    rb"pypi-A": rb"[A-Za-z0-9_-]{50,255}",
    rb"\bSG\.": rb"[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}",  # SendGrid
    rb"do[oprt]_v1_": rb"[a-f0-9]{64}",  # DigitalOcean
    rb"sq0(?:atp|csp|idp)-": rb"[A-Za-z0-9_-]{22,43}",  # Square
    rb"\b(?:AC|SK)[0-9a-f]{4}": rb"[0-9a-f]{28}",  # Twilio
    rb"\b\d{8,10}:AA": rb"[A-Za-z0-9_-]{33}",  # Telegram
}
AZURE = rb"AccountKey=[A-Za-z0-9+/]{2}", rb"(?<=AccountKey=)[A-Za-z0-9+/]{86}=="


def check_key(data: bytes, match: re.Match) -> Span | None:
    """A key that is not a piece of a longer string, and not a word repeated to show the form."""
    if re.search(rb"[\w-]\Z", before(data, match.start(), 1)) or after(data, match.end(), 1) in (b"=", b"/"):
        return None
    key = data[match.start() : match.end()]
    return Span("secret", match.start(), match.end()) if len(set(key)) >= 10 and b"EXAMPLE" not in key else None


def check_token(data: bytes, match: re.Match) -> Span | None:
    """A JSON Web Token (RFC 7519) has a header that names its algorithm."""
    header = data[match.start() : match.end()].partition(b".")[0]
    try:
        decoded = json.loads(base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4)))
    except ValueError:
        return None
    known = isinstance(decoded, dict) and ("alg" in decoded or "enc" in decoded)
    return Span("secret", match.start(), match.end()) if known else None


# The longest key file that is looked for, in bytes: one of 16,384 bits takes 13 kB.
LONGEST_KEY = 2**14


def check_private_key(data: bytes, match: re.Match) -> Span | None:
    """A private key (RFC 7468) from its first line to its last, or as far as its lines go; without lines it is none."""
    rest = after(data, match.end(), LONGEST_KEY)
    end = re.search(rb"-----END [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----", rest)
    stop = match.end() + (end.end() if end else re.match(rb"(?:\s*[A-Za-z0-9+/=]{16,}(?=\s|$))*", rest).end())
    if not re.search(rb"[A-Za-z0-9+/=]{32}", data[match.end() : stop]):
        return None
    return Span("secret", match.start(), stop)


def check_url(data: bytes, match: re.Match) -> Span | None:
    """The password of scheme://user:password@host (RFC 3986, 3.2.1)."""
    password = data[match.start("value") : match.end("value")]
    return None if is_placeholder(password) else Span("secret", match.start("value"), match.end("value"))


PLACEHOLDER = re.compile(
    rb"example|sample|change|your|xxxx|dummy|placeholder|password|passwd|secret|token|redacted|insert|enter|"
    rb"\*\*|\.\.\.|\$[({]|^\$[a-z_]+$|<|>|\{\{|\{[a-z_]*\}|%[(s]|1234567|abcdef|^(?:none|null|true|false|undefined|required)$",
    re.IGNORECASE,
)


def is_placeholder(value: bytes) -> bool:
    """Whether a value says of itself that another one belongs there."""
    return bool(PLACEHOLDER.search(value)) or len(set(value)) < 4


QUOTED = re.compile(rb"([\"'`])([^\"'`\s\0]{8,512})\1")
# What a name ends in that is no secret itself.
PLAIN = re.compile(
    rb"(?:version|name|type|url|uri|path|file|field|class|length|size|format|prefix)s?\W*\Z", re.IGNORECASE
)
# Without quotes a value takes the rest of the line, and is no call, index or name with points.
BARE = re.compile(rb"()([A-Za-z0-9+/=_!$%*?.^~@#&-]{8,512})[ \t\r]*(?:\n|\0|\\n|$)")
NAMED = re.compile(rb"[A-Za-z_]\w*(?:(?:\.|->|::)[A-Za-z_]\w*)+")


def check_assigned(data: bytes, match: re.Match) -> Span | None:
    """A value behind a name such as password and a sign such as =, if it looks drawn at random."""
    if PLAIN.search(match[0]) or re.search(rb"public_?(?:key_?)?\Z", before(data, match.start(), 12)):
        return None
    value = QUOTED.match(data, match.end())
    if value is None and match[0].rstrip().endswith((b"=", b"=>")):
        value = BARE.match(data, match.end())
        value = None if value is None or NAMED.fullmatch(value[2]) else value
    if value is None or is_placeholder(value[2]) or not looks_random(value[2]):
        return None
    return Span("secret", value.start(2), value.end(2))


def looks_random(value: bytes) -> bool:
    """Whether a value has as much entropy as its length allows, and is not a word or a name.

    Short values cannot reach the 3 bits per byte of long ones: 0.8 of log2(length) is asked for instead.
    """
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    if entropy < min(3.0, 0.8 * math.log2(len(value))):
        return False
    kinds = [bool(re.search(kind, value)) for kind in (rb"[a-z]", rb"[A-Z]", rb"\d", rb"[!?*%^+$&~#@=]")]
    if sum(kinds) >= 3 or (kinds[2] and (kinds[0] or kinds[1])):
        return True
    # Words change their case at most where one begins: at a quarter of the letters of `userPasswordField`.
    changes = len(re.findall(rb"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[a-z])", value))
    return changes / (len(value) - 1) > 0.3


NAMES = rb"(?i:passw(?:or)?d|passwd|\bpwd|secret|token|api_?-?key|access_?-?key|auth_?-?key|private_?-?key|credential)"
PRIVATE_KEY = rb"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----"
RULES = (
    Rule(rb"|".join(PROVIDERS), rb"|".join(prefix + rest for prefix, rest in PROVIDERS.items()), check_key),
    Rule(*AZURE, lambda data, match: Span("secret", *match.span())),
    Rule(rb"\beyJ", rb"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*[A-Za-z0-9]", check_token),
    Rule(rb"-----BEGIN ", PRIVATE_KEY, check_private_key),
    Rule(rb"[a-z]://", rb"[a-z]://[^\s/:@\0'\"<>]{1,64}:(?P<value>[^\s/@\0'\"<>]{3,128})@[A-Za-z0-9\[]", check_url),
    Rule(
        NAMES,
        NAMES + rb"[A-Za-z0-9_-]{0,24}[\"'\]]{0,2}(?:[ \t]{0,8}(?:=>|:=|=|:)[ \t]{0,8}|[ \t]+value[ ]?=[ ]?)",
        check_assigned,
    ),
)
