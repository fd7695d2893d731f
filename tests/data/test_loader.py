import subprocess
import sys
from contextlib import closing
from functools import partial
from itertools import islice

import numpy as np
import pytest

from maxlm.config import DataConfig, SourceConfig
from maxlm.data import bestfit, concat, loader
from maxlm.data.schedule import Layout, Stage
from maxlm.data.shards import Shards, index_name, tokens_name
from maxlm.data.sources import Source, open_sources
from maxlm.errors import ConfigError, DataError

SEQ_LEN, BATCH, STEPS = 16, 8, 60
WEIGHTS = {"web": 0.75, "code": 0.25}


def stage(weights, batch_size=BATCH, steps=STEPS):
    return Stage(steps * batch_size * SEQ_LEN, weights, batch_size, SEQ_LEN)


def read_steps(shards, rows=range(BATCH), stages=None, steps=STEPS, seed=0):
    """Batches of a run over the shards; `rows` by the size of the batch, or for all sizes."""
    sources = {name: Source(name, one, SourceConfig(path=""), seed) for name, one in shards.items()}
    stages = stages or [stage(WEIGHTS)]
    rows = rows if isinstance(rows, dict) else {one.batch_size: rows for one in stages}
    return loader.Batches(sources, Layout(stages, sources).begin(), rows=rows, num_steps=steps)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype


def stack(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def data_config(sources, validation=()):
    return DataConfig(
        seq_len=SEQ_LEN,
        sources={name: {"path": str(path)} for name, path in sources},
        validation={name: {"path": str(path)} for name, path in validation},
        mixture=[{"tokens": 1000, "weights": {name: 1.0 for name, _ in sources}}],
    )


@pytest.mark.parametrize("readers", [1, 2, 4, 8])
def test_global_batch_is_the_same_for_any_number_of_readers(two_sources, readers):
    whole = read_steps(two_sources)
    parts = [read_steps(two_sources, rows) for rows in np.split(np.arange(BATCH), readers)]
    for step in (0, 7, STEPS - 1):
        assert_equal(stack([part[step] for part in parts]), whole[step])


def test_rows_come_in_the_order_asked_for(two_sources):
    rows = [5, 0, 3]
    assert_equal(read_steps(two_sources, rows)[4], {name: a[rows] for name, a in read_steps(two_sources)[4].items()})


def test_a_change_of_readers_and_batch_size_loses_and_repeats_nothing(two_sources):
    only = {"web": two_sources["web"]}
    stages = [stage({"web": 1}, steps=5), stage({"web": 1}, 4)]
    windows = int(concat.sizes(len(only["web"]), SEQ_LEN).sum())
    two = [read_steps(only, {8: rows}, stages) for rows in ([0, 1, 2, 3], [4, 5, 6, 7])]
    four = [read_steps(only, {4: [row]}, stages) for row in range(4)]
    read = [part[step] for step in range(5) for part in two] + [part[step] for step in range(5, 60) for part in four]
    epoch = {name: array[:windows] for name, array in stack(read).items()}
    stream = only["web"].read(0, len(only["web"]))
    assert 40 < windows < 40 + 55 * 4
    assert np.array_equal(np.sort(epoch["tokens"][epoch["segment_ids"] > 0]), np.sort(stream[:-1]))


def test_every_epoch_reads_the_whole_source_in_a_new_order(two_sources):
    only = {"code": two_sources["code"]}
    windows = int(concat.sizes(len(only["code"]), SEQ_LEN).sum())
    source = read_steps(only, range(windows), [stage({"code": 1}, windows)])
    first, second = source[0]["tokens"], source[1]["tokens"]
    assert not np.array_equal(first, second)
    assert sorted(map(tuple, first)) == sorted(map(tuple, second))


@pytest.mark.parametrize("workers", [0, 1])
def test_best_fit_packing_reads_every_document_whole_once_an_epoch(two_sources, workers):
    pack = partial(bestfit.open_index, overlong="split")
    sources = {name: Source(name, one, SourceConfig(path=""), 0, pack) for name, one in two_sources.items()}
    seq_len, windows = 64, {name: int(pack(one, 64).sizes.sum()) for name, one in two_sources.items()}
    steps = sum(windows.values())
    schedule = Layout([Stage(steps * seq_len, windows, 1, seq_len)], sources).begin()
    source = loader.Batches(sources, schedule, rows={1: [0]}, num_steps=steps)
    with closing(loader.batches(source, workers=workers)) as reader:
        read = stack(list(reader))
    counted = read["weights"].sum()
    assert counted == sum(shards.manifest.target_tokens for shards in two_sources.values())
    for number, shards in enumerate(two_sources.values()):
        mine = read["sources"] == number
        tokens = read["tokens"][mine][read["segment_ids"][mine] > 0]
        assert np.array_equal(np.sort(tokens), np.sort(shards.read(0, len(shards))))
    ends = read["tokens"] == 0
    assert ((read["weights"] == 0) == (ends | (read["segment_ids"] == 0))).all()


def test_sources_index_the_order_of_the_configuration(two_sources):
    source = read_steps(two_sources)
    assert source.names == ("web", "code")
    batches = stack([source[step] for step in range(20)])
    first_token = batches["tokens"].max(axis=1)
    assert np.array_equal(batches["sources"], first_token >= 10_000)
    assert batches["sources"].dtype == np.int32 and batches["sources"].mean() == 0.25


def test_order_of_a_source_does_not_depend_on_the_others(two_sources):
    alone = read_steps({"code": two_sources["code"]}, stages=[stage({"code": 1})])
    source, block, window = read_steps(two_sources).windows(np.arange(400), SEQ_LEN)
    assert np.array_equal(window[source == 1], alone.windows(np.arange(100), SEQ_LEN)[2])


def test_seed_changes_the_order(two_sources):
    tokens = [read_steps(two_sources, seed=seed)[0]["tokens"] for seed in (0, 1)]
    assert not np.array_equal(*tokens)


def test_seeking_to_a_step_equals_running_to_it(two_sources):
    source = read_steps(two_sources)
    with closing(loader.batches(source)) as reader:
        run = list(islice(reader, 20))
    with closing(loader.batches(source, start_step=15)) as reader:
        sought = list(reader)
    assert len(sought) == STEPS - 15
    for step in range(15, 20):
        assert_equal(run[step], source[step])
        assert_equal(sought[step - 15], source[step])


def test_a_finished_run_reads_nothing(two_sources):
    with closing(loader.batches(read_steps(two_sources), start_step=STEPS)) as reader:
        assert list(reader) == []


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_threads_and_worker_processes_give_the_same_stream(two_sources, workers, started):
    source = read_steps(two_sources)
    with closing(loader.batches(source, start_step=STEPS - 9, workers=workers, prefetch=3)) as reader:
        read = list(reader)
    assert len(read) == 9
    for step, batch in enumerate(read, STEPS - 9):
        assert_equal(batch, source[step])
    assert not started()


def test_closing_early_ends_the_worker_processes(two_sources, started):
    reader = loader.batches(read_steps(two_sources, steps=10**6), workers=2, prefetch=4)
    next(reader)
    assert len(started()) == 2
    reader.close()
    assert not started()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_is_named_by_the_reader(two_sources, workers):
    directory = two_sources["web"].directory
    (directory / tokens_name(1)).unlink()
    source = read_steps({"web": Shards(directory)}, stages=[stage({"web": 1})])
    with (
        closing(loader.batches(source, workers=workers)) as reader,
        pytest.raises(DataError, match=tokens_name(1)),
    ):
        list(reader)


def test_a_row_beyond_the_batch_is_refused(two_sources):
    with pytest.raises(ValueError, match="row 8 of step 2, which has 8 examples"):
        read_steps(two_sources, [0, 8])[2]


def test_validation_reads_the_first_windows_in_written_order(two_sources):
    shards = two_sources["web"]
    stream = shards.read(0, len(shards))
    read = stack(list(loader.sequential(shards, seq_len=SEQ_LEN, sequences=11, batch_size=4, rows=range(4))))
    assert read["tokens"].shape == (12, SEQ_LEN)
    assert np.array_equal(read["tokens"][:11].ravel(), stream[: 11 * SEQ_LEN])
    assert not any(read[name][11].any() for name in read)


def test_validation_reads_every_target_once_for_any_split_of_rows(two_sources):
    shards = two_sources["code"]
    options = {"seq_len": SEQ_LEN, "sequences": None, "batch_size": 4}
    whole = list(loader.sequential(shards, rows=range(4), **options))
    halves = [loader.sequential(shards, rows=rows, **options) for rows in ([0, 1], [2, 3])]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert_equal(stack(parts), batch)
    assert sum(batch["weights"].sum() for batch in whole) == shards.manifest.target_tokens


def test_sources_are_opened_in_the_order_of_the_configuration(two_sources):
    config = data_config([("web", two_sources["web"].directory)], [("held", two_sources["code"].directory)])
    sources = open_sources(config, 2**16, seed=0)
    assert list(sources.train) == ["web"] and list(sources.validation) == ["held"]
    assert len(sources.validation["held"]) == len(two_sources["code"])


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such directory"):
        open_sources(data_config([("web", tmp_path / "nowhere")]), 2**16, seed=0)


@pytest.mark.parametrize("documents", [[], [[0]]])
def test_an_empty_source_is_refused(write_shards, tmp_path, documents):
    with pytest.raises(DataError, match="empty: holds .* expected at least one document"):
        write_shards("empty", documents)
        open_sources(data_config([("web", tmp_path / "empty")]), 2**16, seed=0)


def test_mixed_tokenizers_are_refused_with_both_directories(write_shards, documents_of):
    one = write_shards("one", documents_of([9]), tokenizer="a").directory
    other = write_shards("other", documents_of([9]), tokenizer="b").directory
    for config in (data_config([("web", one), ("code", other)]), data_config([("web", one)], [("held", other)])):
        with pytest.raises(ConfigError, match=r"/one and .*/other were prepared with different tokenizers"):
            open_sources(config, 2**16, seed=0)


def test_a_vocabulary_that_is_too_small_is_refused_with_one_that_works(write_shards, documents_of):
    directory = write_shards("web", documents_of([9]), vocab_size=50_257).directory
    open_sources(data_config([("web", directory)]), 50_257, seed=0)
    with pytest.raises(ConfigError, match=r"vocab_size is 50256, .* has 50257 ids; .* for example 50304"):
        open_sources(data_config([("web", directory)]), 50_256, seed=0)


@pytest.mark.parametrize("name", [tokens_name(1), index_name(2), "documents-00000.parquet", "documents.hash"])
def test_missing_truncated_and_altered_files_are_named(two_sources, name):
    shards = two_sources["web"]
    path = shards.directory / name
    content = path.read_bytes()
    shards.verify("checksums")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shards.verify("sizes")
    with pytest.raises(DataError, match=f"{name}.*altered"):
        shards.verify("checksums")
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{name}.*has {len(content) - 1} bytes"):
        shards.verify("sizes")
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        shards.verify("sizes")


def test_a_truncated_token_file_is_named_when_it_is_read(two_sources):
    shards = Shards(two_sources["code"].directory)
    path = shards.directory / tokens_name(0)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=f"{tokens_name(0)}: cannot be read"):
        read_steps({"code": shards}, stages=[stage({"code": 1})])[0]


def test_importing_the_loader_imports_no_jax():
    code = "import sys, maxlm.data.loader; sys.exit(any(name in sys.modules for name in ('jax', 'grain')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_sources_in_a_store_give_the_batches_of_the_disk_and_are_read_ahead(two_sources, server, make_cache):
    server.folder = two_sources["web"].directory.parent
    cache = make_cache(read_ahead=3)
    remote = {name: Shards(f"{server.url}/{name}", cache) for name in two_sources}
    disk, store = read_steps(two_sources), read_steps(remote)
    with closing(store), closing(loader.batches(store, start_step=STEPS - 20)) as reader:
        for step, batch in enumerate(reader, STEPS - 20):
            assert_equal(batch, disk[step])
    asked = [(request.name, request.range) for request in server.asked(".bin")]
    assert len(asked) == len(set(asked)) == sum(len(one.manifest.shards) for one in two_sources.values())


def test_packed_sources_in_a_store_keep_their_index_in_the_cache(two_sources, server, make_cache, tmp_path):
    server.folder = two_sources["web"].directory.parent
    pack = partial(bestfit.open_index, overlong="split", cache=tmp_path / "indexes")
    stages = [stage({"web": 1})]
    batches = []
    for shards in (two_sources["web"], Shards(f"{server.url}/web", make_cache())):
        sources = {"web": Source("web", shards, SourceConfig(path=""), 0, pack)}
        schedule = Layout(stages, sources).begin()
        batches.append(loader.Batches(sources, schedule, rows={BATCH: range(BATCH)}, num_steps=STEPS))
    for step in (0, 5, 30):
        assert_equal(batches[1][step], batches[0][step])
    batches[1].close()
    assert len(list((tmp_path / "indexes").iterdir())) == 1
