import numpy as np
import pytest

from maxlm.data import concat, order, packing

SEQ_LEN, EOS = 16, 0
CASES = {
    "one document": [50],
    "documents of one token": [2] * 40,
    "ends at window bounds": [16, 16, 32, 8, 8, 17],
    "tail of one token": [16, 2],
    "mixed": [2, 2, 90, 3, 15, 17, 16, 40, 2],
    "random": np.random.default_rng(0).integers(2, 41, 60).tolist(),
}


def expected_window(documents, window, seq_len):
    """The same window, token by token."""
    stream = [(token, d, p) for d, document in enumerate(documents) for p, token in enumerate(document)]
    names = ("tokens", "targets", "segment_ids", "positions", "weights")
    row = {name: [0] * seq_len for name in names}
    segment, position = 0, 0
    for column in range(seq_len):
        index = window * seq_len + column
        if index + 1 >= len(stream):
            break
        (token, document, place), (target, next_document, _) = stream[index], stream[index + 1]
        if column == 0 or place == 0:
            segment, position = segment + 1, 0
        values = (token, target, segment, position, int(document == next_document))
        for name, value in zip(names, values, strict=True):
            row[name][column] = value
        position += 1
    return row


def read_all(shards, seq_len, mask_documents=True):
    sizes = concat.sizes(len(shards), seq_len)
    texts = [concat.read_window(shards, seq_len, block, k) for block, size in enumerate(sizes) for k in range(size)]
    return packing.assemble(texts, seq_len, mask_documents)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_windows_equal_the_stream_token_by_token(write_shards, documents_of, case, shards, dtype):
    documents = documents_of(CASES[case])
    batch = read_all(write_shards("a", documents, shards=min(shards, len(documents)), dtype=dtype), SEQ_LEN)
    for window in range(len(batch["tokens"])):
        for name, values in expected_window(documents, window, SEQ_LEN).items():
            assert batch[name][window].tolist() == values, (name, window)


def test_an_epoch_has_every_token_and_target_once(write_shards, random_documents):
    documents = random_documents(1, 100)
    shards = write_shards("a", documents, shards=7)
    stream = np.concatenate(documents)
    batch = read_all(shards, SEQ_LEN)
    real = batch["segment_ids"] > 0
    assert np.array_equal(batch["tokens"][real], stream[:-1])
    assert np.array_equal(batch["targets"][real], stream[1:])
    assert batch["weights"].sum() == shards.manifest.target_tokens
    assert (~real).sum() == -(len(stream) - 1) % SEQ_LEN > 0
    assert all((batch[name][~real] == 0).all() for name in batch)


@pytest.mark.parametrize("seq_len", [16, 17, 63, 64])
def test_blocks_are_the_same_tokens_for_every_length(write_shards, random_documents, monkeypatch, seq_len):
    monkeypatch.setattr(order, "BLOCK_TOKENS", 64)
    shards = write_shards("a", random_documents(4, 100), shards=3)
    stream, sizes = shards.read(0, len(shards)), concat.sizes(len(shards), seq_len)
    for block, size in enumerate(sizes.tolist()):
        texts = [concat.read_window(shards, seq_len, block, window).tokens for window in range(size)]
        inputs = np.concatenate([text[:-1] for text in texts])
        assert np.array_equal(inputs, stream[:-1][block * 64 : (block + 1) * 64])
        assert texts[-1][-1] == stream[min((block + 1) * 64, len(stream) - 1)]
    assert len(sizes) == -(-(len(stream) - 1) // 64)


def test_no_target_crosses_a_document(write_shards, random_documents):
    batch = read_all(write_shards("a", random_documents(2, 100), shards=3), SEQ_LEN)
    ends = batch["tokens"] == EOS
    assert (batch["weights"][ends] == 0).all()
    assert (batch["weights"][~ends] == 1).all()
    same = batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]
    real = batch["segment_ids"][:, 1:] > 0
    assert np.array_equal(same[real], ~ends[:, :-1][real])


def test_positions_restart_with_every_document_and_window(write_shards, random_documents):
    batch = read_all(write_shards("a", random_documents(3, 100)), SEQ_LEN)
    assert (batch["positions"][:, 0] == 0).all()
    starts = np.diff(batch["segment_ids"], axis=1) != 0
    assert (batch["positions"][:, 1:][starts] == 0).all()
    assert (np.diff(batch["positions"], axis=1)[~starts & (batch["segment_ids"][:, 1:] > 0)] == 1).all()


def test_without_masks_a_window_is_one_text(write_shards, documents_of):
    documents = documents_of(CASES["mixed"])
    masked, plain = (read_all(write_shards(str(mask), documents), SEQ_LEN, mask) for mask in (True, False))
    real = masked["segment_ids"] > 0
    for name in ("tokens", "targets"):
        assert np.array_equal(plain[name], masked[name])
    assert np.array_equal(plain["segment_ids"], real) and np.array_equal(plain["weights"], real)
    assert np.array_equal(plain["positions"], np.arange(SEQ_LEN) * real)


def test_a_row_without_a_window_is_padding(write_shards, documents_of):
    shards = write_shards("a", documents_of([40]))
    text = concat.read_window(shards, SEQ_LEN, 0, 0)
    batch = packing.assemble([None, text, None], SEQ_LEN, True)
    alone = packing.assemble([text], SEQ_LEN, True)
    for name in batch:
        assert not batch[name][[0, 2]].any()
        assert np.array_equal(batch[name][1:2], alone[name])


def test_batches_have_the_types_of_the_training_step(write_shards):
    batch = read_all(write_shards("a", [[2**31 - 1, 5, 0]], dtype="uint32"), 4)
    dtypes = {name: str(array.dtype) for name, array in batch.items()}
    integers = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), "int32")
    assert dtypes == integers | {"weights": "float32"}
    assert batch["tokens"][0].tolist() == [2**31 - 1, 5, 0, 0]
