"""The chat template of a tokenizer: messages to text, in a sandbox.

Templates are Jinja, of the dialect that Hugging Face's tokenizers brought about: blocks leave no blank lines
(trim_blocks, lstrip_blocks), `break` and `continue`, `raise_exception(message)`, `strftime_now(format)`, a `tojson`
that escapes nothing, `{% generation %}` around answers, and the names of the special tokens (`bos_token`, `eos_token`,
...). They come with models from anywhere, so they see plain data alone, cannot reach into Python, and get TIME_LIMIT
seconds and TEXT_LIMIT characters. What memory one takes in that time is not bounded.
"""

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maxlm.errors import ConfigError, DataError

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
DEFAULT = "default"  # the name of the one that is used where there are several
TIME_LIMIT = 5.0  # seconds to write one conversation
TEXT_LIMIT = 2**24  # characters of it

Message = Mapping[str, str]  # role and content


class _Refused(Exception):
    """Raised by a template that does not accept a conversation."""


class _Generation(Extension):
    """Answers marked for training: the text between the marks, as it is."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class ChatTemplate:
    """The template in a tokenizer's folder.

    Raises `DataError` naming the folder where it has none, and the file where it is damaged.
    """

    def __init__(self, folder: Path):
        config = _read_config(folder / TOKENIZER_CONFIG)
        templates = _templates(folder, config)
        if not templates:
            raise DataError(
                f"{folder}: holds no chat template ({TEMPLATE_FILE}, or chat_template in {TOKENIZER_CONFIG}), so the "
                "model knows no conversations; continue texts with --prompt instead"
            )
        if DEFAULT not in templates:
            raise DataError(f"{folder}: has the chat templates {', '.join(templates)}; expected one called {DEFAULT}")
        self.folder, self.names, self.source = folder, _special_names(config), templates[DEFAULT]
        try:
            self._template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise self._broken(error) from None

    def render(self, messages: Sequence[Message], names: Mapping[str, str], add_generation_prompt: bool) -> str:
        """The conversation as text; with `add_generation_prompt` the beginning of an answer is its end.

        `names` are special tokens besides those of the tokenizer's config, as `bos_token`. Raises `ConfigError` where
        the template refuses the messages, `DataError` where it fails.
        """
        values: dict[str, Any] = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
        values |= dict(names) | self.names | {"add_generation_prompt": add_generation_prompt}
        parts, length = [], 0
        try:
            with _time_limit(TIME_LIMIT):
                for part in self._template.generate(values):
                    length += len(part)
                    if length > TEXT_LIMIT:
                        raise _TooMuch(f"more than {TEXT_LIMIT} characters")
                    parts.append(part)
        except _Refused as error:
            raise ConfigError(f"the chat template refuses the conversation: {error}") from None
        except Exception as error:  # whatever a template can make Python raise
            raise self._broken(error) from None
        return "".join(parts)

    def _broken(self, error: Exception) -> DataError:
        reason = " ".join(f"{type(error).__name__.lstrip('_')}: {error}".split())[:200]
        return DataError(f"{self.folder}: its chat template cannot be used ({reason})")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which writes nothing for what is out of reach; here a template that tries ends."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise jinja2.exceptions.SecurityError(f"'{attribute}' of a {type(obj).__name__} is out of its reach")


def _environment() -> ImmutableSandboxedEnvironment:
    found = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    found.filters["tojson"] = _tojson
    found.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return found


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _TooMuch(Exception):
    pass


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise in the main thread when the time is over; other threads cannot be interrupted, and are not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise _TooMuch(f"more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name; those in files of their own come before those in the tokenizer's config."""
    files = {DEFAULT: folder / TEMPLATE_FILE}
    files |= {path.stem: path for name in TEMPLATE_FOLDERS for path in sorted((folder / name).glob("*.jinja"))}
    try:
        if templates := {name: path.read_text("utf-8") for name, path in files.items() if path.is_file()}:
            return templates
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder}: a chat template cannot be read ({error})") from None
    found = config.get("chat_template")
    if isinstance(found, str):
        return {DEFAULT: found}
    try:
        return {entry["name"]: entry["template"] for entry in found or []}
    except (KeyError, TypeError):
        raise DataError(
            f"{folder / TOKENIZER_CONFIG}: chat_template must be a text, or a list of objects with name and template"
        ) from None


def special_names(path: Path) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names; none where there is no such file."""
    return _special_names(_read_config(path))


def _special_names(config: dict[str, Any]) -> dict[str, str]:
    """The special tokens that a config names, as bos_token: each a text, or an object with its content."""
    named = {key: value for key, value in config.items() if key.endswith("_token") and not key.startswith("add_")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}
