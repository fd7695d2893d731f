"""Scripts of letters: by Unicode's names, and Han characters by what OpenCC makes of them."""

import unicodedata

import numpy as np
import opencc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.language.identify import han, script
from data_prep.text import characters
from data_prep.text.characters import SCRIPTS
from data_prep.text.texts import Texts


@pytest.mark.parametrize(
    ("letters", "code"),
    [
        ("azÅßẞﬁＡ", "Latn"),
        ("жЯі", "Cyrl"),
        ("λΩ", "Grek"),
        ("عربی", "Arab"),
        ("אב", "Hebr"),
        ("अक", "Deva"),
        ("ไทย", "Thai"),
        ("한글ㄱﾡ", "Hang"),
        ("ひらが", "Hira"),
        ("カタカﾅー", "Kana"),
        ("国这们", "Hans"),
        ("國這們", "Hant"),
        ("的人大々", "Hani"),
        ("𐌰ꓐ", "Zzzz"),
        ("1٣²,。 \n_\u0301", ""),
    ],
)
def test_letters_know_their_script(letters, code):
    assert {SCRIPTS[characters.scripts()[ord(letter)]] for letter in letters} == {code}


def test_every_letter_has_a_script_and_nothing_else_has():
    letters = np.array([unicodedata.category(chr(code))[0] == "L" for code in range(characters.CODE_POINTS)])
    assert ((characters.scripts() > 0) == letters).all()


def test_han_of_one_script_is_what_opencc_changes_in_one_direction():
    table = characters.scripts()
    for name, other, code in (("s2t", "t2s", "Hans"), ("t2s", "s2t", "Hant")):
        found = np.flatnonzero(table == SCRIPTS.index(code))[::50].tolist()
        assert len(found) > 50
        changed, same = opencc.OpenCC(name), opencc.OpenCC(other)
        for character in map(chr, found):
            assert changed.convert(character) != character == same.convert(character)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.text(st.sampled_from("ab жλ国國的人ひカー한1,。\n𐌰😀"), max_size=12), min_size=1, max_size=4))
def test_the_script_of_most_letters_and_its_share(texts):
    names, shares = script(Texts.from_strings(texts))
    for text, name, share in zip(texts, names, shares, strict=True):
        codes = [SCRIPTS[characters.scripts()[ord(letter)]] for letter in text if letter.isalpha()]
        east = [code for code in codes if code in ("Hans", "Hant", "Hani", "Hira", "Kana")]
        counts = {code: codes.count(code) for code in codes if code not in east}
        most = max([len(east), *counts.values()])
        assert share == pytest.approx(most / max(1, len(codes)))
        if not codes:
            assert name is None
        elif len(east) == most > max(counts.values(), default=0):
            kana = sum(code in ("Hira", "Kana") for code in east)
            balance = east.count("Hans") - east.count("Hant")
            chinese = "Hans" if balance > 0 else "Hant" if balance < 0 else "Hani"
            assert name == ("Jpan" if kana and kana >= 0.1 * len(east) else chinese)
        else:
            assert counts[name] == most


def test_han_characters_are_judged_apart_from_other_letters():
    assert han(Texts.from_strings(["the manual of 這個國家", "这 and that", "no han", "国國", ""])) == [
        "Hant",
        "Hans",
        "Hani",
        "Hani",
        "Hani",
    ]
