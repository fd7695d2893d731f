"""The statistics and line rules of data_prep/rules, slowly and plainly: what compiled loops must equal."""

import re
from collections.abc import Sequence

from data_prep.config.rules import Profile
from data_prep.rules import sentences, traits
from data_prep.text import words
from data_prep.text.texts import Texts

TABLE = traits.traits()


def texts_of(strings: list[str]) -> Texts:
    """Arrays that cannot be written, as Arrow's: compiled loops are compiled for each kind."""
    texts = Texts.from_strings(strings)
    texts.bounds.setflags(write=False)
    return texts


def words_of(text: str, splitter: str) -> list[str]:
    found = words.split(texts_of([text]), splitter)
    encoded = text.encode()
    return [encoded[a:b].decode() for a, b in zip(found.starts, found.stops, strict=True)]


def is_plain(word: str) -> bool:
    return any(not TABLE[ord(character)] & traits.SYMBOL for character in word)


def repeats(pieces: Sequence[str]) -> tuple[int, int, int]:
    """How many there are, how many were there before, and the characters of these."""
    again = [piece for number, piece in enumerate(pieces) if piece in pieces[:number]]
    return len(pieces), len(again), sum(map(len, again))


def top_gram(found: list[str], n: int) -> int:
    grams = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
    best = max(grams, key=grams.count, default="")  # the first of several
    return grams.count(best) * len(best)


def duplicate_grams(found: list[str], n: int) -> int:
    seen, characters, place = set(), 0, 0
    while place + n <= len(found):
        gram = "".join(found[place : place + n])
        if gram in seen:
            characters, place = characters + len(gram), place + n
        else:
            seen.add(gram)
            place += 1
    return characters


def statistics(text: str, profile: Profile) -> dict[str, int]:
    found = words_of(text, profile.words)
    plain = [word for word in found if is_plain(word)]
    lines = text.splitlines()
    paragraphs = repeats(re.split(r"\n\n+", text.strip()))
    pieces = repeats(re.split(r"\n+", text))
    return {
        "characters": len(text),
        "letters_and_digits": sum(character.isalpha() or character.isdigit() for character in text),
        "words": len(found),
        "plain_words": len(plain),
        "plain_word_characters": sum(map(len, plain)),
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in found),
        "stop_words": len({*found} & {*profile.stop_words}),
        "hashes": text.count("#"),
        "ellipses": text.count("...") + text.count("…"),
        "lines": len(lines),
        "bullet_lines": sum(line.lstrip().startswith(("•", "-")) for line in lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines),
        "line_characters": sum(map(len, lines)),
        "longest_line": max(map(len, lines), default=0),
        **dict(zip(("paragraphs", "duplicate_paragraphs", "duplicate_paragraph_characters"), paragraphs, strict=True)),
        **dict(zip(("newline_lines", "duplicate_lines", "duplicate_line_characters"), pieces, strict=True)),
        **{f"top_{n}_gram_characters": top_gram(found, n) for n in (2, 3, 4)},
        **{f"duplicate_{n}_gram_characters": duplicate_grams(found, n) for n in range(5, 11)},
    }


def left_statistics(text: str, profile: Profile) -> dict[str, int]:
    lines = [line for line in text.split("\n") if line.strip()]
    stops = profile.stop_characters
    if stops == "sentence_terminal":
        stops = [chr(code) for code in traits.sentence_terminal()]
    return {
        "left_characters": len(text.replace("\n", "")),
        "left_lines": len(lines),
        "left_stop_lines": sum(line.endswith(tuple(stops)) for line in lines),
        "left_short_lines": sum(len(line) <= profile.short_line_characters for line in lines),
        "left_duplicate_characters": repeats(lines)[2],
        "left_newlines": text.count("\n"),
        "left_words": len(words_of(text, profile.words)),
    }


def lower(text: str) -> str:
    """Lower case, character by character where that is one character."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def own_rules(lines: list[str], profile: Profile) -> list[str]:
    """What removes each line, of the rules that are not C4's."""
    rules, removed = profile.lines, ["kept"] * len(lines)
    if rules is None:
        return removed
    stops = tuple(chr(code) for code in traits.sentence_terminal())
    stops = stops if isinstance(profile.stop_characters, str) else tuple(profile.stop_characters)
    stripped = [line.strip() for line in lines]
    if "boilerplate" in rules.remove:
        for number, line in enumerate(stripped):
            phrase = any(lower(part) in lower(line) for part in rules.containing)
            phrase |= lower(line) in map(lower, rules.equal)
            if line and phrase and len(line) <= rules.max_characters:
                removed[number] = "boilerplate"
    if "short_runs" in rules.remove:
        there = [number for number, line in enumerate(stripped) if line and removed[number] == "kept"]
        short = [len(stripped[i]) <= rules.run_characters and not stripped[i].endswith(stops) for i in there]
        runs, begin = [], 0
        for end in range(len(there) + 1):
            if end == len(there) or not short[end]:
                runs.append((begin, end))
                begin = end + 1
        for begin, end in runs:
            edge = begin == 0 or end == len(there)
            if end - begin >= rules.run_lines and (edge or rules.run_anywhere):
                for number in there[begin:end]:
                    removed[number] = "short run"
    if "few_words" in rules.remove:
        for number, line in enumerate(stripped):
            few = len([word for word in words_of(line, profile.words) if is_plain(word)]) < rules.min_words
            if line and few and removed[number] == "kept":
                removed[number] = "few words"
    return removed


def c4_line(line: str, profile: Profile, counts: dict[str, int]) -> tuple[str, str]:
    """What removes a line by C4's rules, and what is left of it."""
    rules = profile.c4.lines
    line = line.strip()
    parts = line.split()
    if rules and rules.max_word_characters and any(len(part) > rules.max_word_characters for part in parts):
        return "c4: long word", line
    if rules and rules.citations:
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
    if rules and rules.final_punctuation and (not line.endswith(tuple(".?!\"'")) or line.endswith("...")):
        return "c4: no final punctuation", line
    if rules and rules.min_words and len(parts) < rules.min_words:
        return "c4: few words", line
    counts["lorem_ipsum_lines"] += "lorem ipsum" in lower(line)
    if rules and any(lower(phrase) in lower(line) for phrase in rules.javascript or []):
        return "c4: javascript", line
    counts["curly_bracket_lines"] += "{" in line
    if rules and any(lower(phrase) in lower(line) for phrase in rules.policy or []):
        return "c4: policy", line
    counts["sentences"] += len(sentences.split(line))
    return "kept", line


def apply_lines(text: str, profile: Profile) -> tuple[str, list[str], dict[str, int]]:
    """What line rules leave of a text, what removes each line, and C4's counts."""
    counts = {"lorem_ipsum_lines": 0, "curly_bracket_lines": 0, "sentences": 0}
    whole, lines = text.splitlines(keepends=True), text.splitlines()
    removed, left = own_rules(lines, profile), list(lines)
    if profile.c4:
        for number, line in enumerate(lines):
            if removed[number] == "kept":
                rule, left[number] = c4_line(line, profile, counts)
                removed[number] = rule if profile.c4.lines else "kept"
    if profile.c4 and profile.c4.lines:
        kept = [line for line, rule in zip(left, removed, strict=True) if rule == "kept"]
        return "\n".join(kept).strip(), removed, counts
    if all(rule == "kept" for rule in removed):
        return text, removed, counts
    kept = [line for line, rule in zip(whole, removed, strict=True) if rule == "kept"]
    if kept and removed[-1] != "kept":
        last = lines[max(number for number, rule in enumerate(removed) if rule == "kept")]
        kept[-1] = last.rstrip() if last.strip() else last
    return "".join(kept), removed, counts
