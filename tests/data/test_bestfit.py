import pickle
import shutil
import sysconfig
import tempfile
from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shard_files import write_directory

from maxlm.data import bestfit, placement
from maxlm.data.shards import Shards, index_name
from maxlm.errors import ConfigError, DataError, MaxlmError, SaveError

FILES = [*bestfit.ARRAYS, bestfit.RECORD]


def numbered(lengths):
    """Documents in which every token is its position in the source plus one, so that a window tells what it holds."""
    return [range(start + 1, stop + 1) for start, stop in pairwise(accumulate(lengths, initial=0))]


def write(directory, lengths, shards=1):
    return write_directory(directory, numbered(lengths), shards=shards, dtype="uint32")


def read_all(shards, index):
    """(block, text, ends) of every window, in order."""
    return [
        (block, *bestfit.read_window(shards, index, block, window))
        for block, size in enumerate(index.sizes)
        for window in range(size)
    ]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def plain_best_fit_decreasing(slots, seq_len):
    """What every window holds, by the definition: one piece after the other, over all windows."""
    windows = []
    for length in sorted(slots, reverse=True):
        fits = [window for window in windows if sum(window) + length <= seq_len]
        if fits:
            max(fits, key=sum).append(length)
        else:
            windows.append([length])
    return windows


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=150))))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_runs_of_windows_are_filled_as_one_piece_after_the_other(case):
    seq_len, slots = case
    window = placement.best_fit_decreasing(np.array(slots, np.int64), seq_len)
    plain = plain_best_fit_decreasing(slots, seq_len)
    filled = np.bincount(window, slots, len(plain))
    assert sorted(filled) == sorted(map(sum, plain))


@st.composite
def sources(draw):
    lengths = draw(st.lists(st.one_of(st.integers(1, 6), st.integers(1, 60)), min_size=1, max_size=40))
    return {
        "lengths": lengths,
        "shards": draw(st.integers(1, min(3, len(lengths)))),
        "seq_len": draw(st.integers(1, 16)),
        "block_tokens": draw(st.integers(1, 80)),
        "overlong": draw(st.sampled_from(["split", "drop"])),
    }


def check(shards, index, lengths, seq_len, block_tokens, overlong):
    """Everything that holds for any source, read off the windows alone."""
    bounds = list(pairwise(accumulate(lengths, initial=0)))
    kept = [(start, stop) for start, stop in bounds if overlong == "split" or stop - start <= seq_len]
    document_of = {position: document for document in kept for position in range(*document)}
    read, ended = [], []
    for block, text, ends in read_all(shards, index):
        slots, targets = text[:-1].astype(int) - 1, text[1:].astype(int) - 1
        assert 1 <= len(slots) <= seq_len
        # The targets: within a document the next token, at its end none, at a cut the document's next one.
        last = np.isin(np.arange(1, len(slots) + 1), ends)
        assert np.array_equal(targets[~last], slots[~last] + 1)
        assert (text[-1] == 0) == last[-1]
        assert last[-1] or (len(slots) == seq_len and len(ends) == 0)
        pieces = np.split(slots, ends[:-1] if last[-1] else ends)
        for piece in pieces:
            start, stop = document_of[piece[0]]
            assert np.array_equal(piece, np.arange(piece[0], min(piece[0] + seq_len, stop)))
            assert (piece[0] - start) % seq_len == 0
            assert start // block_tokens == block
        read += slots.tolist()
        ended += slots[last].tolist()
    assert sorted(read) == sorted(document_of)
    assert sorted(ended) == [stop - 1 for _, stop in kept]
    assert len(index.sizes) == -(-len(shards) // block_tokens)
    check_statistics(index, [stop - start for start, stop in bounds], seq_len, overlong, len(read))


def check_statistics(index, lengths, seq_len, overlong, filled):
    overlong_lengths = [length for length in lengths if length > seq_len]
    split, dropped = (overlong_lengths, []) if overlong == "split" else ([], overlong_lengths)
    windows = index.sizes.sum()
    assert index.statistics == (
        len(lengths),
        len(split),
        len(dropped),
        sum(dropped),
        windows,
        windows * seq_len,
        filled,
    )
    assert index.statistics.fill_rate == filled / (windows * seq_len)
    assert index.statistics.truncated_share == len(split) / len(lengths)


@given(sources())
@example({"lengths": [1], "shards": 1, "seq_len": 1, "block_tokens": 1, "overlong": "drop"})
@example({"lengths": [40, 3, 5, 2], "shards": 2, "seq_len": 8, "block_tokens": 10, "overlong": "split"})
@settings(derandomize=True, deadline=None, max_examples=60)
def test_every_token_is_in_one_window_and_no_target_crosses_a_document(source):
    lengths, shards = source.pop("lengths"), source.pop("shards")
    with tempfile.TemporaryDirectory() as folder:
        shards = write(Path(folder) / "a", lengths, shards)
        if source["overlong"] == "drop" and min(lengths) > source["seq_len"]:
            with pytest.raises(ConfigError, match=rf"each of its {len(lengths)} documents is longer than seq_len"):
                bestfit.open_index(shards, **source)
            assert not any((shards.directory / "packing").iterdir())
        else:
            check(shards, bestfit.open_index(shards, **source), lengths, **source)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 30))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_every_block_has_the_windows_of_plain_best_fit_decreasing(lengths, seq_len):
    block_tokens = 200
    blocks = [[] for _ in range(-(-sum(lengths) // block_tokens))]
    for length, start in zip(lengths, accumulate(lengths, initial=0), strict=False):
        pieces = [seq_len] * (length // seq_len) + ([length % seq_len] if length % seq_len else [])
        blocks[start // block_tokens] += pieces
    with tempfile.TemporaryDirectory() as folder:
        shards = write(Path(folder) / "a", lengths)
        index = bestfit.open_index(shards, seq_len, "split", block_tokens=block_tokens)
        fills = [(block, len(text) - 1) for block, text, _ in read_all(shards, index)]
    plain = [(b, sum(w)) for b, block in enumerate(blocks) for w in plain_best_fit_decreasing(block, seq_len)]
    assert sorted(fills) == sorted(plain)


def test_version_1_never_changes(tmp_path):
    shards = write(tmp_path / "a", [3, 9, 2, 5, 5, 7, 21, 1])
    index = bestfit.open_index(shards, 10, "split")
    assert bestfit.VERSION == 1
    assert [(text.tolist(), ends.tolist()) for _, text, ends in read_all(shards, index)] == [
        ([1, 2, 3, *range(25, 32), 0], [3, 10]),
        ([*range(15, 25), 0], [5, 10]),
        ([*range(42, 53)], []),
        ([52, *range(4, 13), 0], [1, 10]),
        ([53, 13, 14, 0], [1, 3]),
        ([*range(32, 43)], []),
    ]
    types = dict(zip(bestfit.ARRAYS, ("<i8", "<u4", "<u4", "<u2"), strict=True))
    assert {name: np.fromfile(index.directory / name, dtype).tolist() for name, dtype in types.items()} == {
        "blocks.bin": [6, 10],
        "windows.bin": [0, 2, 4, 5, 7, 9, 10],
        "starts.bin": [0, 24, 14, 19, 41, 51, 3, 52, 12, 31],
        "lengths.bin": [3, 7, 5, 5, 11, 1, 9, 1, 2, 11],
    }


def test_places_say_nothing_of_lengths(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 30, 3000)
    for name, source in (("shuffled", lengths), ("ascending", np.sort(lengths))):
        shards = write(tmp_path / name, source.tolist())
        index = bestfit.open_index(shards, 32, "split")
        windows = [np.diff(ends, prepend=0) for _, _, ends in read_all(shards, index)]
        first, last = np.array([(pieces[0], pieces[-1]) for pieces in windows if len(pieces) > 1]).T
        longest = np.array([pieces.max() for pieces in windows])
        difference = first - last
        assert len(first) > 500 and abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(first))
        assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 4 / np.sqrt(len(longest))


def test_a_document_belongs_to_the_block_in_which_it_starts(tmp_path):
    # Blocks of ten: one document begins in the last token of the first and reaches into the fourth.
    shards = write(tmp_path / "a", [4, 5, 24, 3], shards=2)
    index = bestfit.open_index(shards, 8, "split", block_tokens=10)
    assert index.sizes.tolist() == [5, 0, 0, 1]
    blocks = {block: [] for block in range(4)}
    for block, text, _ in read_all(shards, index):
        blocks[block] += text[:-1].tolist()
    assert {block: sorted(tokens) for block, tokens in blocks.items()} == {
        **{0: [*range(1, 34)], 1: [], 2: []},
        3: [34, 35, 36],
    }
    with pytest.raises(IndexError, match="window 0 of block 1 .* which has 0"):
        bestfit.read_window(shards, index, 1, 0)
    with pytest.raises(IndexError, match="window 5 of block 0 .* which has 5"):
        bestfit.read_window(shards, index, 0, 5)


def test_lengths_above_16_bits(tmp_path):
    seq_len = 2**16 - 1
    shards = write(tmp_path / "a", [2 * seq_len + 5, seq_len, 7])
    index = bestfit.open_index(shards, seq_len, "split", block_tokens=2**18)
    assert (index.directory / bestfit.LENGTHS).stat().st_size == 5 * 4
    check(shards, index, [2 * seq_len + 5, seq_len, 7], seq_len, 2**18, "split")


def test_documents_that_positions_of_32_bits_do_not_reach_are_refused(tmp_path, monkeypatch):
    shards = write(tmp_path / "a", [4, 4])
    monkeypatch.setattr(Shards, "ends", lambda self, start, stop: np.array([2**32 + 2**20]))
    with pytest.raises(DataError, match=f"a document of {2**32 + 2**20} tokens; .* less than {2**32 - 2**24}"):
        bestfit.open_index(shards, 2**20, "split")


def test_types_are_those_of_the_shards(two_sources):
    for name, dtype in (("web", "uint16"), ("code", "uint32")):
        shards = two_sources[name]
        index = bestfit.open_index(shards, 16, "split", block_tokens=500)
        assert {(str(text.dtype), str(ends.dtype)) for _, text, ends in read_all(shards, index)} == {(dtype, "int64")}


def test_any_number_of_processes_writes_the_same_bytes(two_sources, tmp_path):
    shards, blocks = two_sources["web"], []

    def progress(items, total):
        for number, item in enumerate(items):
            blocks.append((number, total))
            yield item

    one = bestfit.open_index(shards, 16, "split", block_tokens=17, progress=progress)
    total = -(-len(shards) // 17)
    assert blocks == [(number, total) for number in range(total)] and total > 2 * bestfit._AHEAD
    built = contents(one.directory)
    shutil.rmtree(one.directory)
    two = bestfit.open_index(shards, 16, "split", block_tokens=17, workers=2)
    assert contents(two.directory) == built and two.hash == one.hash


def test_a_killed_process_ends_the_build_with_an_error(two_sources, started):
    shards = two_sources["web"]

    def kill(blocks, total):
        yield next(blocks)
        started()[0].kill()
        yield from blocks

    with pytest.raises(MaxlmError, match="a process that builds the packing index was killed"):
        bestfit.open_index(shards, 16, "split", block_tokens=10, workers=2, progress=kill)
    assert not any((shards.directory / "packing").iterdir())


def test_an_index_is_built_once_and_read_back(two_sources):
    shards = two_sources["web"]
    built = bestfit.open_index(shards, 16, "drop", block_tokens=500)
    written = {path: path.stat().st_mtime_ns for path in built.directory.iterdir()}
    again = bestfit.open_index(Shards(shards.directory), 16, "drop", block_tokens=500)
    assert {path: path.stat().st_mtime_ns for path in again.directory.iterdir()} == written
    assert again.directory.parent == shards.directory / "packing"
    assert (again.hash, again.statistics, again.key) == (built.hash, built.statistics, built.key)
    assert again.sizes.dtype == np.int64 and np.array_equal(again.sizes, built.sizes)
    for one, other in zip(read_all(shards, built), read_all(shards, again), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_a_copy_for_another_process_carries_no_arrays(two_sources):
    index = bestfit.open_index(two_sources["web"], 16, "split", block_tokens=500)
    data = pickle.dumps(index)
    assert len(data) < 1000
    for one, other in zip(
        read_all(two_sources["web"], index), read_all(two_sources["web"], pickle.loads(data)), strict=True
    ):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_every_setting_and_the_data_make_an_index_of_their_own(tmp_path):
    first, second = write(tmp_path / "a", [5, 30, 12, 40]), write(tmp_path / "b", [5, 30, 12, 41])
    settings = [(16, "split", 64), (16, "drop", 64), (17, "split", 64), (16, "split", 65)]
    indices = [bestfit.open_index(first, s, overlong, block_tokens=b) for s, overlong, b in settings]
    shutil.copytree(first.directory / "packing", second.directory / "packing")  # as if the data were prepared anew
    indices.append(bestfit.open_index(second, 16, "split", block_tokens=64))
    assert len({index.directory for index in indices}) == len({index.hash for index in indices}) == 5
    assert indices[-1].statistics.filled_slots == 88
    assert indices[0].directory.name.startswith("bestfit-v1-seq16-split-block64-")


def test_an_index_of_another_key_is_not_used(two_sources):
    web, code = (bestfit.open_index(shards, 16, "split") for shards in two_sources.values())
    shutil.rmtree(web.directory)
    shutil.copytree(code.directory, web.directory)
    with pytest.raises(DataError, match=f"{web.directory}: holds the index of other data .* delete it"):
        bestfit.open_index(two_sources["web"], 16, "split")


@pytest.mark.parametrize("name", FILES)
def test_missing_truncated_and_altered_files_are_named(two_sources, name):
    shards = two_sources["web"]
    index = bestfit.open_index(shards, 16, "split", block_tokens=500)
    path = index.directory / name
    content = path.read_bytes()
    middle = len(content) // 2
    altered = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damage in (altered, content[:-3], content + b"\0", b"", None):
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(DataError, match=f"{path}: .*; delete {index.directory}, it is built again"):
            bestfit.open_index(shards, 16, "split", block_tokens=500)
    shutil.rmtree(index.directory)
    assert bestfit.open_index(shards, 16, "split", block_tokens=500).hash == index.hash


def test_no_index_is_built_of_damaged_data(two_sources):
    """It would be kept under the manifest's name, and still be used when the data is whole again."""
    shards = Shards(two_sources["web"].directory)
    path = shards.directory / index_name(1)
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DataError, match=f"{path}: its contents differ from the manifest's checksum"):
        bestfit.open_index(shards, 16, "split", verify="sizes")
    assert not list(shards.directory.glob("packing/*"))
    path.write_bytes(content)
    bestfit.open_index(Shards(shards.directory), 16, "split")


def test_sizes_alone_may_be_compared(two_sources):
    shards = two_sources["web"]
    path = bestfit.open_index(shards, 16, "split").directory / bestfit.STARTS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bestfit.open_index(shards, 16, "split", verify="sizes")
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"has {len(content) - 1} bytes, expected {len(content)}"):
        bestfit.open_index(shards, 16, "split", verify="sizes")


def test_a_cache_holds_the_index_where_nothing_can_be_written(two_sources, tmp_path):
    shards, cache = two_sources["web"], tmp_path / "cache"
    here = bestfit.open_index(shards, 16, "split", cache=cache)
    assert not cache.exists()
    shutil.rmtree(shards.directory / "packing")
    (shards.directory / "packing").touch()  # a file in the way stops root too, whom no permission does
    with pytest.raises(SaveError, match=f"{shards.directory / 'packing'}: no packing index can be written"):
        bestfit.open_index(shards, 16, "split")
    index = bestfit.open_index(shards, 16, "split", cache=cache)
    assert index.directory.parent == cache and index.hash == here.hash
    written = index.directory.stat().st_mtime_ns
    assert bestfit.open_index(shards, 16, "split", cache=cache).directory.stat().st_mtime_ns == written
    shutil.rmtree(cache)
    cache.touch()
    with pytest.raises(SaveError, match=f"packing and {cache}: no packing index"):
        bestfit.open_index(shards, 16, "split", cache=cache)


def test_the_first_of_several_builders_wins(two_sources):
    shards, indices = two_sources["web"], []

    def other_builds_meanwhile(blocks, total):
        yield from blocks
        indices.append(bestfit.open_index(shards, 16, "split"))
        indices.append(indices[0].directory.stat().st_ino)

    index = bestfit.open_index(shards, 16, "split", progress=other_builds_meanwhile)
    assert index.hash == indices[0].hash and index.directory.stat().st_ino == indices[1]
    assert [path.name for path in (shards.directory / "packing").iterdir()] == [index.key.name]


def test_a_build_that_is_stopped_leaves_nothing(two_sources):
    def stop(blocks, total):
        yield next(blocks)
        raise KeyboardInterrupt

    shards = two_sources["web"]
    with pytest.raises(KeyboardInterrupt):
        bestfit.open_index(shards, 16, "split", block_tokens=100, progress=stop)
    assert not any((shards.directory / "packing").iterdir())
    bestfit.open_index(shards, 16, "split", block_tokens=100)


def test_real_documents_fill_99_percent(write_shards):
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    shards = write_shards("stdlib", [[*(byte + 1 for byte in path.read_bytes()), 0] for path in paths[:150]])
    index = bestfit.open_index(shards, 2048, "split")
    counted = Counter(len(text) - 1 for _, text, _ in read_all(shards, index))
    assert sum(length * count for length, count in counted.items()) == len(shards) > 1_000_000
    assert len(shards) / (counted.total() * 2048) == index.statistics.fill_rate >= 0.99
