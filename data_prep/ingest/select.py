"""Which records of a web archive are wanted: rules on a page's address, domain, host and language.

A rule that leaves a record out is counted by its name. Lists are held in memory: about 100 bytes per domain or host in
every worker.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from data_prep.config.select import FILE, SelectConfig
from maxlm.errors import ConfigError

LISTS = ("allow_urls", "deny_urls", "allow_domains", "deny_domains", "allow_hosts", "deny_hosts", "languages")
# The host of an address: after user and password, before the port.
HOST = re.compile(r"[a-zA-Z][\w+.-]*://(?:[^/?#@]*@)?(\[[^\]/?#]*\]|[^/?#:]*)")
DOMAIN = re.compile(r"[^\s/:*@]+")
WILDCARD = "*."


@dataclass(frozen=True)
class Rules:
    """`allow` and `deny` lists as patterns or sets of names; None where a list is not given."""

    allow_urls: tuple[re.Pattern, ...] | None = None
    deny_urls: tuple[re.Pattern, ...] | None = None
    allow_domains: frozenset[str] | None = None
    deny_domains: frozenset[str] | None = None
    allow_hosts: frozenset[str] | None = None
    deny_hosts: frozenset[str] | None = None
    languages: frozenset[str] | None = None

    def refuse(self, url: str | None) -> str | None:
        """The reason why the record of an address is not wanted, if it is not."""
        url = url or ""
        if self.allow_urls is not None and not any(pattern.search(url) for pattern in self.allow_urls):
            return "not in allow_urls"
        if self.deny_urls is not None and any(pattern.search(url) for pattern in self.deny_urls):
            return "in deny_urls"
        named = (
            (self.allow_domains, self.deny_domains, "domains", _is_below),
            (self.allow_hosts, self.deny_hosts, "hosts", _is_host),
        )
        host: str | None = None
        for allow, deny, name, matches in named:
            if allow is None and deny is None:
                continue
            host = host_of(url) if host is None else host
            if allow is not None and not matches(host, allow):
                return f"not in allow_{name}"
            if deny is not None and matches(host, deny):
                return f"in deny_{name}"
        return None

    def refuse_language(self, languages: str | None) -> str | None:
        """As `refuse`, for languages separated by commas, the main one first."""
        if self.languages is None or (languages or "").partition(",")[0].strip() in self.languages:
            return None
        return "not in languages"


def host_of(url: str) -> str:
    """The host of an address in lower case and ASCII (IDNA), without points around it; "" for none."""
    found = HOST.match(url)
    return _ascii(found[1]) if found else ""


def _ascii(name: str) -> str:
    name = name.lower().strip(".")
    if name.isascii():
        return name
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


def _is_below(host: str, domains: frozenset[str]) -> bool:
    """Whether a host is one of the domains or below one."""
    while host not in domains:
        _, point, host = host.partition(".")
        if not point:
            return False
    return True


def _is_host(host: str, hosts: frozenset[str]) -> bool:
    """Whether a host is listed, or below a listed wildcard."""
    if host in hosts:
        return True
    while True:
        _, point, host = host.partition(".")
        if not point:
            return False
        if WILDCARD + host in hosts:
            return True


def rules_key(config: SelectConfig) -> list:
    """What enters the key of results that depend on rules: the content of the lists, wherever they lie."""
    lists = {name: [entry for _, entry in entries] for name in LISTS if (entries := _entries(config, name)) is not None}
    return [sha256("\n".join([name, *entries]).encode()).hexdigest() for name, entries in lists.items()]


def load_rules(config: SelectConfig | None) -> Rules:
    """The rules of a source, loaded once per process; raises `ConfigError` naming an entry that is not one."""
    if config is None:
        return Rules()
    listed = (entry for name in LISTS for entry in getattr(config, name) or ())
    files = [os.stat(path) for entry in listed if entry.startswith(FILE) and (path := _path(entry)).is_file()]
    return _load(config.model_dump_json(), tuple((file.st_size, file.st_mtime_ns) for file in files))


@lru_cache(8)
def _load(text: str, _versions: tuple[tuple[int, int], ...]) -> Rules:
    config = SelectConfig.model_validate_json(text)
    lists = {name: entries for name in LISTS if (entries := _entries(config, name)) is not None}
    makers = {"urls": _patterns, "domains": _domains, "hosts": _hosts}
    return Rules(**{name: makers.get(name.partition("_")[2], _codes)(entries) for name, entries in lists.items()})


def _entries(config: SelectConfig, name: str) -> list[tuple[str, str]] | None:
    """The entries of a list, each with its place; null stays null."""
    listed = getattr(config, name)
    return None if listed is None else [pair for entry in listed for pair in _expand(f"select.{name}", entry)]


def _expand(place: str, entry: str) -> Iterator[tuple[str, str]]:
    if not entry.startswith(FILE):
        yield place, entry
        return
    path = _path(entry)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(
            f"{place}: {path} cannot be read ({reason}); expected a file with an entry per line"
        ) from None
    for number, line in enumerate(lines, 1):
        if (line := line.strip()) and not line.startswith("#"):
            yield f"{path}:{number}", line


def _path(entry: str) -> Path:
    return Path(entry.removeprefix(FILE)).expanduser()


def _patterns(entries: Sequence[tuple[str, str]]) -> tuple[re.Pattern, ...]:
    # Not joined into one: each may have flags and references of its own.
    patterns = []
    for place, entry in entries:
        try:
            patterns.append(re.compile(entry))
        except re.error as error:
            raise ConfigError(f"{place}: '{entry}' is not a regular expression ({error})") from None
    return tuple(patterns)


def _domains(entries: Sequence[tuple[str, str]]) -> frozenset[str]:
    for place, entry in entries:
        if not DOMAIN.fullmatch(entry):
            raise ConfigError(f"{place}: '{entry}' is not a domain; expected a name such as example.org")
    return frozenset(_ascii(entry) for _, entry in entries)


def _hosts(entries: Sequence[tuple[str, str]]) -> frozenset[str]:
    for place, entry in entries:
        if not DOMAIN.fullmatch(entry.removeprefix(WILDCARD)):
            raise ConfigError(f"{place}: '{entry}' is not a host; expected www.example.org or *.example.org")
    return frozenset(_ascii(entry) for _, entry in entries)


def _codes(entries: Sequence[tuple[str, str]]) -> frozenset[str]:
    return frozenset(entry for _, entry in entries)
