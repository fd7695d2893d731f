"""Prompts: text files with fields, and which one a seed gets."""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.config.languages import base
from data_prep.config.synthesis import PromptConfig
from data_prep.synthesize.seeds import Seed
from maxlm.errors import ConfigError

# Only a name in braces is a field: the braces of JSON and of code in a prompt stay as they are.
FIELD = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
PART = re.compile(r"^=== (\w+)[ \t]*\n", re.MULTILINE)
ROLES = ("system", "user")


@dataclass(frozen=True)
class Template:
    """A text in which {name} stands for a field, and {{name}} for '{name}' itself."""

    text: str

    @staticmethod
    def checked(text: str, known: Collection[str], place: str) -> "Template":
        """Raises `ConfigError` where it names a field that is not known; `place` is where it was read."""
        for found in FIELD.finditer(text):
            if found[2] is not None and found[2] not in known:
                raise ConfigError(
                    f"{place}: unknown field {{{found[2]}}}; known here: {', '.join(known)}; "
                    f"for the text itself write {{{{{found[2]}}}}}"
                )
        return Template(text)

    def fill(self, values: Mapping[str, str]) -> str:
        """In one pass: what a value has in braces is no field."""
        return FIELD.sub(lambda found: f"{{{found[1]}}}" if found[2] is None else values[found[2]], self.text)


@dataclass(frozen=True)
class Prompt:
    """`hash` is of the file's text; `languages` without regions, None for every language."""

    name: str
    hash: str
    parts: tuple[tuple[str, Template], ...]
    weight: float
    languages: frozenset[str] | None

    @staticmethod
    def load(name: str, config: PromptConfig, known: Collection[str]) -> "Prompt":
        try:
            text = Path(config.file).expanduser().read_text("utf-8")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(
                f"{config.file}: cannot be read ({reason}); expected the text of prompt '{name}'"
            ) from None
        before, *marked = PART.split(text)
        roles = marked[::2] or ["user"]
        contents = marked[1::2] or [before]
        if (marked and before.strip()) or roles not in (["user"], list(ROLES)):
            raise ConfigError(
                f"{config.file}: its parts are {', '.join(roles)}; expected '=== system' and '=== user', or text alone"
            )
        parts = tuple(
            (role, Template.checked(content.strip(), known, config.file))
            for role, content in zip(roles, contents, strict=True)
        )
        if not parts[-1][1].text:
            raise ConfigError(f"{config.file}: has no text for the user's part; expected the question")
        languages = None if config.languages is None else frozenset(map(base, config.languages))
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Prompt(name, digest, parts, config.weight, languages)

    def messages(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": template.fill(values)} for role, template in self.parts]

    def fits(self, language: str | None) -> bool:
        return self.languages is None or (language is not None and base(language) in self.languages)


def choose(prompts: Collection[Prompt], seed: Seed) -> Prompt | None:
    """The prompt of a seed, by weight among those for its language; None where there is none."""
    fitting = [prompt for prompt in prompts if prompt.fits(seed.language)]
    left = seed.draw * sum(prompt.weight for prompt in fitting)
    for prompt in fitting:
        left -= prompt.weight
        if left < 0:
            return prompt
    return fitting[-1] if fitting else None
