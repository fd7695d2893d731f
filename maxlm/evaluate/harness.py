"""A model as lm-eval asks for it (Gao et al. 2023, The language model evaluation harness): texts in, scores and texts
out. What lm-eval computes with its `hf` model is computed here: the same tokens are read, and the same are predicted.

A text begins with BOS where the tokenizer puts one there; one that begins with it already gets no second. What has no
context is predicted from BOS, or from EOS where the tokenizer knows no BOS. Special tokens in texts are themselves.
Importing this needs lm-eval; `tasks.require` says so to people.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from maxlm.config import validate
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError, DataError
from maxlm.evaluate.generate import stream
from maxlm.evaluate.load import Loaded
from maxlm.evaluate.sampling import Sampling
from maxlm.evaluate.scoring import Request, Scorer
from maxlm.evaluate.template import TOKENIZER_CONFIG, ChatTemplate, special_names
from maxlm.evaluate.text import TextStream
from maxlm.report.progress import Track, untracked

MAX_TOKENS = 256  # of an answer where the task does not say; as lm-eval's
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # its names, the first one counts
# What a task may ask of generation. Others change what is drawn, so that leaving them out would not be the task.
KNOWN = frozenset({*LIMITS, "until", "do_sample", "temperature", "top_k", "top_p"})
HARMLESS = frozenset({"num_beams", "use_cache", "pad_token_id", "seed"})  # a beam of one is what is done


class HarnessModel(TemplateLM):
    """lm-eval's model of `loaded`, whose texts are scored by `scorer` and continued `batch_size` at a time."""

    def __init__(self, loaded: Loaded, scorer: Scorer, batch_size: int, track: Track = untracked):
        super().__init__()
        self._loaded, self._scorer, self._batch_size, self._track = loaded, scorer, batch_size, track
        self._tokenizer = loaded.tokenizer
        self._names = _names(self._tokenizer)
        self.task = ""  # what progress is told of
        self.cut = 0  # texts that lost their beginnings since this was last set to 0
        self._bos = self._named("bos_token", self._tokenizer.bos_id)
        self._eos = self._named("eos_token", self._tokenizer.eos_id)

    @property
    def eot_token_id(self) -> int:
        return self._eos

    @property
    def prefix_token_id(self) -> int:
        return self._eos if self._bos is None else self._bos

    @property
    def max_length(self) -> int:
        return self._scorer.max_length

    @property
    def dtype(self) -> str:
        """Of activations and products."""
        return self._loaded.decoder.options.dtype.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, with the BOS that the tokenizer puts in front of it unless `add_special_tokens` is False."""
        ids = self._tokenizer.encode(string, special=True) if string else []
        begun = ids[:1] == [self.prefix_token_id] and add_special_tokens is None
        adds = self._tokenizer.bos_id is not None and add_special_tokens is not False and not begun
        return [self._tokenizer.bos_id, *ids] if adds else ids

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(list(requests), disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **_: Any) -> list[tuple[float, bool]]:
        for (context, continuation), _, targets in requests:
            if not targets:
                raise DataError(
                    f"task {self.task}: {continuation[:40]!r} after {context[-40:]!r} is no token of its own, so it "
                    "has no score; change what parts them (target_delimiter)"
                )
        prefix = [self.prefix_token_id]  # of contexts of which no token is left, as one blank
        asked = [Request(context or prefix, targets) for _, context, targets in requests]
        self.cut += sum(len(context) + len(targets) > self.max_length + 1 for context, targets in asked)
        return [(score.logprob, score.greedy) for score in self._scores(asked)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihoods of whole texts; those longer than the model reads go in windows, each token scored once."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            found = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            for context, targets in map(utils.make_disjoint_window, found):
                windows.append(Request(context, targets))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, score in zip(owners, self._scores(windows), strict=True):
            totals[number] += score.logprob
        return totals

    def _scores(self, requests: list[Request]) -> list:
        return self._scorer.score(requests, self._passed(f"scoring {self.task}"))

    def _passed(self, description: str) -> Callable[[Iterable, int], Iterable]:
        return lambda items, total: self._track(items, description, total, "requests")

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """What continues each context, up to a stop string or the end of a text."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers, passed = [""] * len(requests), self._passed(f"answering {self.task}")
        made = (pair for numbers in groups.values() for pair in self._continue(requests, numbers))
        for number, answer in passed(made, len(requests)):
            answers[number] = answer
        return answers

    def _continue(self, requests: Sequence[Instance], numbers: list[int]) -> Iterable[tuple[int, str]]:
        """Number and answer of requests that ask for the same kind of generation."""
        asked, longest = room_for(requests[numbers[0]].args[1], self.task, self.max_length)
        prompts = [self.tok_encode(requests[number].args[0]) or [self.prefix_token_id] for number in numbers]
        self.cut += sum(len(prompt) > longest for prompt in prompts)
        # The answer alone is decoded, as lm-eval does: some tokenizers leave out a blank at its beginning then.
        texts, answers, ended = (
            [TextStream(self._tokenizer, [], asked.until) for _ in prompts],
            [""] * len(prompts),
            set(),
        )
        drawn = stream(
            self._loaded.graphdef,
            self._loaded.params,
            [prompt[-longest:] for prompt in prompts],
            max_tokens=asked.max_tokens,
            sampling=asked.sampling,
            stop_ids=sorted({*self._loaded.stop_ids, self._eos}),
            vocab_size=self._tokenizer.vocab_size,
            batch_size=self._batch_size,
            ended=ended,
        )
        for row, ids, _, finish in drawn:
            answers[row] += texts[row].add(ids)
            if texts[row].stopped:
                ended.add(row)
            elif finish:
                answers[row] += texts[row].rest()
            if texts[row].stopped or finish:
                yield numbers[row], answers[row]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; without the beginning of an answer its last message goes on.

        A template that refuses a message of the system gets the others, as in lm-eval.
        """
        template, names = self._template, self._names
        try:
            text = template.render(chat_history, names, add_generation_prompt)
        except ConfigError:
            chat_history = [message for message in chat_history if message["role"] != "system"]
            text = template.render(chat_history, names, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    @property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(Path(self._tokenizer.path).parent)

    @property
    def template_hash(self) -> str:
        """Of the chat template; raises `DataError` where there is none."""
        return hashlib.sha256(self._template.source.encode()).hexdigest()[:16]

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.entry.hash

    def _named(self, key: str, otherwise: int | None) -> int | None:
        """The id of a token that the tokenizer's settings name."""
        found = self._tokenizer.token_id(self._names[key]) if key in self._names else None
        return otherwise if found is None else found


class Asked(NamedTuple):
    """What a task asks of generation."""

    until: list[str]
    max_tokens: int
    sampling: Sampling


def room_for(arguments: Mapping[str, Any], task: str, max_length: int) -> tuple[Asked, int]:
    """What a task asks of generation, and the tokens of context that it leaves; `ConfigError` where there are none."""
    asked = asked_for(arguments, task)
    if asked.max_tokens >= max_length:
        raise ConfigError(
            f"task {task}: asks for {asked.max_tokens} new tokens, and the model is made for {max_length} with their "
            "context; it needs a model that reads more"
        )
    return asked, max_length - asked.max_tokens


def asked_for(arguments: Mapping[str, Any], task: str) -> Asked:
    """generation_kwargs of a task, read as lm-eval's `hf` reads them; `ConfigError` for what cannot be honoured."""
    given = {key: value for key, value in arguments.items() if value is not None}
    unknown = sorted(set(given) - KNOWN - HARMLESS)
    if unknown or given.get("num_beams", 1) != 1:
        raise ConfigError(
            f"task {task}: its generation_kwargs have {', '.join(unknown) or 'num_beams above 1'}, expected keys of "
            f"{', '.join(sorted(KNOWN))}"
        )
    until = given.get("until", [])
    until = [until] if isinstance(until, str) else until
    temperature = float(given.get("temperature", 0.0))
    sampled = given.get("do_sample", temperature > 0)
    # Drawing without a temperature is drawing as the model says.
    temperature = (temperature or 1.0) if sampled else 0.0
    limit = next((int(given[key]) for key in LIMITS if key in given), MAX_TOKENS)
    values = {"temperature": temperature, "top_k": given.get("top_k") or None, "top_p": given.get("top_p")}
    return Asked([text for text in until if text], limit, validate(values, Sampling, f"task {task}"))


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """How special tokens are written, by their names: as the tokenizer's settings say, where it has some."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    found = {name: tokenizer.token_text(number) for name, number in ids.items() if number is not None}
    return found | special_names(Path(tokenizer.path).parent / TOKENIZER_CONFIG)
