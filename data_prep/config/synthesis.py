"""Synthetic data: seeds, prompts, and the server that answers them."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_prep.config.pipeline import Selection
from data_prep.config.urls import redact
from maxlm.config import Count, Fraction, Integer, Name, Real, Section

# What the program says in a request itself; `stream` and `n` would give answers that it does not read.
OWN_KEYS = ("model", "messages", "temperature", "max_tokens", "max_completion_tokens", "seed", "stream", "n")
Languages = Annotated[list[str], Field(min_length=1)]


class ServerConfig(Section):
    """A server that has OpenAI's chat completions: vLLM, SGLang, llama.cpp, a provider."""

    url: str = Field(description="Address of its API, up to /v1: http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="Name of the model that is asked.")
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None,
        description="Name of the environment variable that holds the key; null for none. A key is not written down.",
    )
    concurrency: Count = Field(16, description="Requests in flight at a time.")
    timeout: Annotated[Real, Field(gt=0)] = Field(300.0, description="Time for one answer, in seconds.")
    attempts: Count = Field(8, description="How often a request is sent before its seed is left for a later run.")
    longest_pause: Annotated[Real, Field(gt=0)] = Field(
        60.0,
        description="Longest pause before a request is sent again, in seconds; they double from 1, and Retry-After is "
        "obeyed beyond this.",
    )
    max_failures: Count | None = Field(
        None,
        description="Failures in a row, over all requests, after which the run stops with exit code 1; null for 8 for "
        "each request in flight.",
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls the longest answer; some models refuse the older name."
    )

    @property
    def failures(self) -> int:
        """Refusals of many come back before the first answer does, so that few would stop a busy server's client."""
        return self.max_failures or 8 * self.concurrency

    @model_validator(mode="after")
    def _check(self) -> "ServerConfig":
        # A password in it would be written down, and sent in the place of the key.
        if not re.fullmatch(r"https?://[^/\s@?#]+(/[^\s@?#]*)?", self.url):
            raise ValueError(
                f"url is '{redact(self.url)}'; expected an address such as http://127.0.0.1:8000/v1, without password "
                "and query (a key goes into the environment variable that api_key_env names)"
            )
        return self


class PricesConfig(Section):
    input: Annotated[Real, Field(ge=0)] = Field(description="Price of a prompt, in US dollars per million tokens.")
    output: Annotated[Real, Field(ge=0)] = Field(description="Price of an answer, in US dollars per million tokens.")


class PromptConfig(Section):
    file: str = Field(
        description="Text file of the prompt, with fields such as {text}; lines '=== system' and '=== user' begin its "
        "parts."
    )
    weight: Annotated[Real, Field(gt=0)] = Field(
        1.0, description="Its share among the prompts that fit a seed; which one a seed gets is a hash of its id."
    )
    languages: Languages | None = Field(
        None, description="Languages of the seeds that it is for, such as [en]; null for every seed."
    )


class PassConfig(Section):
    """One question for every seed."""

    prompts: Annotated[dict[Name, PromptConfig], Field(min_length=1)] = Field(description="Prompts by name.")
    temperature: Annotated[Real, Field(ge=0)] | None = Field(
        None, description="Temperature of sampling; null for the server's."
    )
    max_tokens: Count = Field(1024, description="Longest answer, in tokens; one that is cut off there is not valid.")
    seed: Annotated[Integer, Field(ge=0)] | None = Field(
        None, description="Seed of sampling, one more for each repeated question; null for none."
    )
    body: dict[str, Any] = Field({}, description="More keys of the request, such as top_p or response_format.")

    @model_validator(mode="after")
    def _check_body(self) -> "PassConfig":
        if taken := [key for key in self.body if key in OWN_KEYS]:
            raise ValueError(f"body has '{taken[0]}', which has a key of its own or cannot be set")
        return self


class AnswerConfig(Section):
    shape: str | dict[str, Any] | None = Field(
        None,
        alias="schema",
        description="JSON schema of an object, or a JSON or YAML file with one, that answers must meet; its required "
        "properties are fields of texts. Null for answers in plain text: the field {answer}. What stands between "
        "<think> and </think> before an answer is left out.",
    )
    repairs: Annotated[Integer, Field(ge=0)] = Field(
        1, description="How often the question is put again where the answer is not valid; each is paid."
    )


class ScoreConfig(PassConfig):
    """A question about the answer, whose answer is a JSON object with a number `score`."""

    min_score: Real = Field(description="Lowest score of a document that is kept.")


class FilterConfig(Section):
    min_characters: Count = Field(1, description="Shortest text that is kept, in characters.")
    max_characters: Count | None = Field(None, description="Longest text that is kept, in characters; null for any.")
    unique: str | None = Field(
        None,
        description="What of a document must be its own, such as '{problem}'; a later document that differs from an "
        "earlier one in case, punctuation and spaces alone is dropped. Null for no comparison.",
    )
    max_copied: Fraction | None = Field(
        None,
        description="Largest share of the text's sequences of 8 words that may stand in the prompt; null for any.",
    )


class Synthesis(Selection):
    """New documents from old ones: the seeds are what the stages of preparation keep of the sources."""

    max_seeds: Count | None = Field(None, description="Seeds that are used, chosen by a hash of their id; null: all.")
    seed_characters: Count = Field(
        8000, description="Longest beginning of a seed's text that a prompt gets, in characters."
    )
    server: ServerConfig = Field(description="The server that is asked.")
    prices: PricesConfig | None = Field(None, description="What the server costs; null where nothing is paid.")
    max_cost: Annotated[Real, Field(gt=0)] | None = Field(
        None,
        description="Most that all runs with this output may cost together, in US dollars; null for no limit.",
    )
    generate: PassConfig = Field(description="The question that is put for every seed.")
    answer: AnswerConfig = Field(AnswerConfig(), description="What a valid answer is.")
    score: ScoreConfig | None = Field(None, description="A second question, by which answers are selected.")
    text: str = Field("{answer}", description="Text of a document, put together from the fields of an answer.")
    filter: FilterConfig = Field(FilterConfig(), description="Which documents are kept, the score aside.")

    @property
    def directory(self) -> Path:
        return Path(self.output)

    @model_validator(mode="after")
    def _check_cost(self) -> "Synthesis":
        if self.max_cost is not None and self.prices is None:
            raise ValueError("max_cost needs prices; without them nothing is known to cost anything")
        return self
