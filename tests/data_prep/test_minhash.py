"""Signatures: what is equal, what is not, and how well minima estimate similarity."""

import random
import unicodedata

import numpy as np
import pytest
from near_copies import plant
from near_copies import shingles as reference_shingles

from data_prep.config.dedup import SIGNATURES
from data_prep.dedup import signatures
from data_prep.dedup.signatures import MinHash
from data_prep.text import characters, words
from data_prep.text.texts import Texts

HAN = "國家圖書館藏目錄學習語言模型預備訓練資料"


def text_of(number, length):
    """Words without spaces of their own, so that a pattern finds the same ones."""
    generator = random.Random(number)
    return " ".join(f"{generator.choice('abcdefgh')}{generator.randrange(500)}" for _ in range(length))


def sign(texts, *, single=False, ngram=5, minhash=None):
    packed = Texts.from_strings(texts)
    minhash = minhash or MinHash(14, 8, 0)
    return signatures.bands(packed, minhash, np.full(len(texts), single), np.full(len(texts), ngram, np.int64))


def shingle_sets(texts, **options):
    single = np.full(len(texts), options.get("single", False))
    packed = Texts.from_strings(texts)
    hashes, bounds = signatures.shingles(packed, single, np.full(len(texts), options.get("ngram", 5), np.int64))
    return [set(hashes[a:b].tolist()) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


@pytest.fixture(scope="module")
def copies():
    """800 texts and a near copy of each, with their similarity."""
    return plant([text_of(number, 80 + number % 900) for number in range(800)], 1.0, 0)


def test_normalised_ignores_case_script_width_punctuation_and_white_space():
    equal = [
        ["Hello, world! 12", "hello world12", "ＨＥＬＬＯ\u3000world 12…", "h-e-l-l-o\n(world)\t#12"],
        ["國家圖書館", "国家图书馆", "「国家」 图书馆。"],
    ]
    different = ["hello world 13", "hello word 12", "国家图书", "hello", "olleh", "", "...", "..", " "]
    groups = [signatures.normalised(Texts.from_strings(group)) for group in equal]
    assert [len(set(group.tolist())) for group in groups] == [1, 1]
    others = signatures.normalised(Texts.from_strings(different))
    assert len({*others.tolist(), *(group[0] for group in groups)}) == len(different) + 2


def test_shingles_are_those_of_a_plain_implementation(copies):
    """As many different ones, shared by as many: sets of hashes stand for sets of 5-grams."""
    texts, pairs = copies
    found = shingle_sets(texts[:40] + texts[800:840])
    expected = [reference_shingles(text) for text in texts[:40] + texts[800:840]]
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in [(i, j) for i in range(0, 80, 7) for j in range(80)]:
        assert len(found[one] & found[other]) == len(expected[one] & expected[other])


def test_shingles_fold_case_and_script_and_leave_symbols_out():
    one, same, other = shingle_sets(["The End -- of 國家 it", "the END of, 国家 (it)!", "the end of the 国家 it"])
    assert one == same and one != other


@pytest.mark.parametrize("ngram", [1, 3, 5])
def test_characters_are_units_of_their_own(ngram):
    text = "Ab國c d"
    plain = "ab国cd"
    (found,) = shingle_sets([text], single=True, ngram=ngram)
    assert len(found) == len({plain[i : i + ngram] for i in range(len(plain) - ngram + 1)})
    assert [found] == shingle_sets([plain], single=True, ngram=ngram)
    assert (len(shingle_sets([HAN], ngram=ngram)[0])) == len(HAN) - ngram + 1, "Han characters are words"


def test_a_document_shorter_than_a_shingle_is_one_shingle():
    texts = ["one two", "One, TWO", "one two three", "two one", "", "...", "!!!"]
    found = shingle_sets(texts)
    assert all(len(one) == 1 for one in found) and found[0] == found[1]
    assert len({min(one) for one in found}) == 6
    bands = sign(texts)
    assert (bands[0] == bands[1]).all() and not (bands[0] == bands[2]).any() and not (bands[5] == bands[6]).any()


def test_a_signature_depends_on_its_document_alone(copies):
    texts = copies[0][:50]
    together = sign(texts)
    alone = np.concatenate([sign([text]) for text in texts])
    mixed = signatures.bands(
        Texts.from_strings(texts), MinHash(14, 8, 0), np.arange(50) % 2 == 0, np.where(np.arange(50) % 2 == 0, 7, 5)
    )
    assert (together == alone).all() and (mixed[1::2] == together[1::2]).all()
    assert (mixed[::2] == sign(texts[::2], single=True, ngram=7)).all()


def test_bands_of_other_seeds_and_buckets_are_never_equal():
    text = [text_of(0, 200)]
    one, other = sign(text)[0], sign(text, minhash=MinHash(14, 8, 1))[0]
    assert len({*one.tolist(), *other.tolist()}) == 28


def test_minima_estimate_similarity_as_theory_says(copies):
    """Root mean square error over 800 pairs: sqrt(mean(J (1 - J)) / 112), within four of its standard errors."""
    texts, pairs = copies
    packed = Texts.from_strings(texts)
    hashes, bounds = signatures.shingles(packed, np.zeros(len(texts), bool), np.full(len(texts), 5, np.int64))
    similarity = np.array([value for *_, value in pairs])
    assert np.quantile(similarity, 0.05) < 0.65 and np.quantile(similarity, 0.95) > 0.93
    for seed in range(3):
        least = signatures.minima(hashes, bounds, MinHash(14, 8, seed))
        estimate = np.array([(least[one] == least[other]).mean() for one, other, _ in pairs])
        theory = np.sqrt((similarity * (1 - similarity)).mean() / 112)
        error = np.sqrt(((estimate - similarity) ** 2).mean())
        assert 0.9 * theory < error < 1.1 * theory
        assert abs((estimate - similarity).mean()) < 4 * theory / np.sqrt(len(pairs))


def test_near_copies_share_a_band(copies):
    """Recall by similarity is that of 1 - (1 - s^8)^14; texts that are no copies share none."""
    texts, pairs = copies
    bands = sign(texts)
    similarity = np.array([value for *_, value in pairs])
    shared = np.array([(bands[one] == bands[other]).any() for one, other, _ in pairs])
    assert shared[similarity >= 0.8].mean() >= 0.98
    expected = 1 - (1 - similarity**8) ** 14
    for low, high in ((0.4, 0.7), (0.7, 0.8), (0.8, 1)):
        inside = (similarity >= low) & (similarity < high)
        spread = np.sqrt((expected[inside] * (1 - expected[inside])).sum()) / inside.sum()
        assert inside.sum() > 50 and abs(shared[inside].mean() - expected[inside].mean()) < 4 * spread
    firsts = bands[:800].ravel()
    assert len(np.unique(firsts)) == len(firsts)


def test_the_recorded_version_is_that_of_what_computes():
    """A change of the splitter or the kernel changes the name that prepared data is compared by."""
    splitter, version, tables = words.version(signatures.SPLITTER)
    assert f"words {splitter} {version}, kernel {signatures.VERSION}, Unicode {tables}" == SIGNATURES
    assert tables == characters.UNICODE == unicodedata.unidata_version


def test_signatures_do_not_change():
    """Prepared data is compared with them for years; a change needs another signatures.VERSION."""
    assert sign(["a text of more than five words"])[0, :2].tolist() == [12446844093391003441, 4260603604738190485]
    found = signatures.normalised(Texts.from_strings(["a text", "國家"]))
    assert found.tolist() == [10547377243751326227, 13884552848038193070]
