"""What may be done to an example before it is a row of a batch: fill-in-the-middle, and prefix-language-model masks.

Pure functions of a window and its key, which `example_keys` derives from (seed, source, number of the example): no
other window, worker or host has a part in the result. A window is `text`, the n tokens of its inputs and one more that
is only a target, and `ends`, the exclusive ends of documents in 1..n. Its parts are whole documents or what lies of
them in the window: text[0:ends[0]], text[ends[0]:ends[1]], ..., text[ends[-1]:n + 1]. Each is transformed or not by
itself, and has the same place and number of tokens afterwards.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxlm.config import FimConfig, PrefixConfig
from maxlm.data import order
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError

Ints = NDArray[np.int64]
Pieces = tuple[NDArray, NDArray, NDArray]  # prefix, middle, suffix

SENTINELS = 3
# Tokens besides BOS and EOS; what is shorter would be sentinels by more than half, and stays as it is.
SHORTEST = 2 * SENTINELS
# UTF-8 has up to 4 bytes a character, and a token at least one.
CHARACTER_TOKENS = 4
REPLACEMENT = "\ufffd"  # what decoding makes of a cut character

_FIM, _PREFIX = 0, 1  # what numbers are drawn for


def example_keys(seed: int, source: ArrayLike, examples: ArrayLike) -> order.Keys:
    """The keys of examples, uint64: from the run's seed, `order.source_id` of their sources, and their numbers g."""
    return order.derive_key(seed, source, examples)


def _draw(key: ArrayLike, purpose: int, parts: int, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), [parts, count], each of a key of its own."""
    keys = order.derive_key(key, purpose, np.arange(parts)[:, None], np.arange(count))
    return (keys >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Fim:
    """How a source's documents are rearranged, with what its tokenizer says of it; see `open_fim`."""

    how: FimConfig
    prefix_id: int
    suffix_id: int
    middle_id: int
    tokenizer: Tokenizer


def open_fim(how: FimConfig, tokenizer: Tokenizer, source: str) -> Fim:
    """Find the sentinels in the tokenizer of a source.

    Raises `ConfigError` where one is missing, or where documents are to be split at characters and the tokenizer's
    pieces do not join (it puts a blank before every text).
    """
    ids = []
    for name in ("prefix", "suffix", "middle"):
        text = getattr(how, name)
        if (found := tokenizer.token_id(text)) is None:
            special = tokenizer.special_tokens()
            nearest = difflib.get_close_matches(text, special, n=8, cutoff=0) or ["none"]
            raise ConfigError(
                f"data.sources.{source}.fim.{name}: '{text}' is not in the tokenizer of {tokenizer.directory}; of its "
                f"{len(special)} special tokens the nearest are {', '.join(nearest)}; name one of them, or train with "
                "maxlm-prep's tokenizer.special_tokens"
            )
        ids.append(found)
    if how.level == "character" and tokenizer.decode(tokenizer.encode("mid") + tokenizer.encode("dle")) != "middle":
        raise ConfigError(
            f"data.sources.{source}.fim.level: pieces of text do not join again in the tokenizer of "
            f"{tokenizer.directory}, which adds blanks to them; set it to token"
        )
    return Fim(how, *ids, tokenizer)


class Filled(NamedTuple):
    """A window after `fill_in_the_middle`."""

    text: NDArray  # of the shape and type of the one before, which is unchanged
    displaced: int  # tokens that were cut off to make room for the sentinels
    transformed: int  # parts that were rearranged


def fill_in_the_middle(text: NDArray, ends: Ints, key: ArrayLike, fim: Fim) -> Filled:
    """Rearrange parts of a window so that their middle comes last (Bavarian et al. 2022, section 3).

    A part is cut in prefix, middle and suffix at two places drawn uniformly, and becomes [BOS] <prefix> prefix <suffix>
    suffix <middle> middle [EOS], PSM, or [BOS] <prefix> <suffix> suffix <middle> prefix middle [EOS], the paper's
    second variant of SPM. Loss is on all of it, as there.

    The sentinels displace tokens: those at the suffix's end, as StarCoder has it, where a window cuts texts anyway and
    far from what is to be filled in; where the suffix is shorter, those at the prefix's start. The middle is never cut,
    which would teach to stop before the suffix is reached. A part of less than `SHORTEST` tokens stays as it is.

    At the level of characters the three pieces are tokenized anew, as those of a prompt will be, which mostly gives a
    few tokens more: they are displaced as well. Where the tokens are too few, the middle alone is too long, or the text
    does not come back, the part stays as it is (2 of 1,208 in windows of 2,048 tokens of Python code, middles all).
    Padding the few would have cost every batch a mask for what never happened there.

    Args:
        text: int [n + 1]; read only.
        ends: int64, ascending, in 1..n.
        key: one of `example_keys`.
        fim: of the window's source.
    """
    draws = _draw(key, _FIM, len(ends) + 1, 4)
    chosen = np.flatnonzero(draws[:, 0] < fim.how.rate).tolist()
    bounds, rows = [0, *ends.tolist(), len(text)], draws.tolist()
    split = _split_tokens if fim.how.level == "token" else _split_characters
    out, displaced, transformed = None, 0, 0
    for part in chosen:
        start, stop = _inside(text, bounds[part], bounds[part + 1], fim.tokenizer)
        if stop - start < SHORTEST:
            continue
        _, order_draw, *places = rows[part]
        pieces = split(text[start:stop], places, fim.tokenizer)
        if pieces is None:
            continue
        prefix, middle, suffix = pieces
        excess = len(prefix) + len(middle) + len(suffix) + SENTINELS - (stop - start)
        kept = max(0, len(suffix) - excess)
        prefix, suffix = prefix[max(0, excess - len(suffix)) :], suffix[:kept]
        out = text.copy() if out is None else out
        _arrange(out[start:stop], prefix, middle, suffix, fim, suffix_first=order_draw < fim.how.spm_rate)
        displaced, transformed = displaced + excess, transformed + 1
    return Filled(text if out is None else out, displaced, transformed)


def _inside(text: NDArray, start: int, stop: int, tokenizer: Tokenizer) -> tuple[int, int]:
    """The part without its BOS and EOS."""
    if start < stop and text[start] == tokenizer.bos_id:
        start += 1
    if start < stop and text[stop - 1] == tokenizer.eos_id:
        stop -= 1
    return start, stop


def _arrange(out: NDArray, prefix: NDArray, middle: NDArray, suffix: NDArray, fim: Fim, suffix_first: bool) -> None:
    """Write the pieces and sentinels to where the part was."""
    first, second = len(prefix), len(suffix)
    out[0] = fim.prefix_id
    if suffix_first:
        out[1] = fim.suffix_id
        out[2 : 2 + second] = suffix
        out[2 + second] = fim.middle_id
        out[3 + second : 3 + second + first] = prefix
    else:
        out[1 : 1 + first] = prefix
        out[1 + first] = fim.suffix_id
        out[2 + first : 2 + first + second] = suffix
        out[2 + first + second] = fim.middle_id
    out[3 + first + second :] = middle


def _places(length: int, draws: Sequence[float]) -> tuple[int, int]:
    """Two places to cut, each uniform in 0..length, in order."""
    one, other = (int(draw * (length + 1)) for draw in draws)
    return min(one, other), max(one, other)


def _split_tokens(part: NDArray, draws: Sequence[float], _: Tokenizer) -> Pieces:
    low, high = _places(len(part), draws)
    high = min(high, low + len(part) - SENTINELS)
    return part[:low], part[low:high], part[high:]


def _split_characters(part: NDArray, draws: Sequence[float], tokenizer: Tokenizer) -> Pieces | None:
    """The pieces tokenized anew, or None where they do not fill the part or its text is lost.

    Tokens of a character that the window's edge has cut are kept as they are, before the prefix and after the suffix.
    """
    whole = _whole_characters(part.tolist(), tokenizer)
    if whole is None:
        return None
    first, last = whole
    text = tokenizer.decode(part[first:last].tolist())
    low, high = _places(len(text), draws)
    pieces = [tokenizer.encode(piece) for piece in (text[:low], text[low:high], text[high:])]
    room = len(part) - SENTINELS
    fits = len(pieces[1]) <= room <= sum(map(len, pieces)) + first + len(part) - last
    if not fits or tokenizer.decode([token for piece in pieces for token in piece]) != text:
        return None
    prefix, middle, suffix = (np.array(piece, part.dtype) for piece in pieces)
    return np.concatenate([part[:first], prefix]), middle, np.concatenate([suffix, part[last:]])


def _whole_characters(tokens: list[int], tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The slice of the tokens that begins and ends with whole characters; None where it is not near the edges."""
    firsts = range(min(CHARACTER_TOKENS, len(tokens)))
    lasts = range(len(tokens), len(tokens) - len(firsts), -1)

    def whole(start: int, stop: int, edge: int) -> bool:
        return tokenizer.decode(tokens[max(start, 0) : stop])[edge:][:1] != REPLACEMENT

    first = next((i for i in firsts if whole(i, i + CHARACTER_TOKENS, 0)), None)
    last = next((i for i in lasts if whole(i - CHARACTER_TOKENS, i, -1)), None)
    return None if first is None or last is None else (first, last)


class Prefixes(NamedTuple):
    """The prefixes of a window's n inputs."""

    prefix: NDArray[np.bool_]  # [n], the tokens of a document that see each other in both directions
    weights: NDArray[np.float32]  # [n], 0 where the target lies in the prefix, else 1


def prefix_mask(ends: Ints, n: int, key: ArrayLike, how: PrefixConfig) -> Prefixes:
    """Draw which parts of a window have a bidirectional prefix, and how long (Raffel et al. 2020, section 3.2.1).

    The length is uniform in 1..L - 1 of a part of L tokens, so that something is left to predict; a part of one token
    has none. The last token of a prefix predicts the first one behind it.

    Args:
        ends: int64, ascending, in 1..n.
        n: inputs of the window.
        key: one of `example_keys`.
        how: of the window's source.
    """
    starts = np.concatenate([[0], ends])
    sizes = np.diff(starts, append=n + 1)
    draws = _draw(key, _PREFIX, len(starts), 2)
    length = np.minimum(1 + (draws[:, 1] * (sizes - 1)).astype(np.int64), sizes - 1)
    length = np.where(draws[:, 0] < how.rate, length, 0)
    prefix = np.arange(n) < np.repeat(starts + length, sizes)[:n]
    weights = np.ones(n, np.float32)
    weights[:-1] = ~(prefix[:-1] & prefix[1:])  # the last token of a part is in no prefix
    return Prefixes(prefix, weights)
