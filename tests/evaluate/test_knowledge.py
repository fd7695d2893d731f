"""What a model knows, against figures made from the whole logits of every text alone."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import model_config
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE

from maxlm.config import MeshConfig, PipelineConfig
from maxlm.data.shards import TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError
from maxlm.evaluate import knowledge
from maxlm.evaluate.knowledge import Exam, Result, describe, encode
from maxlm.evaluate.questions import Question, Questions, read_questions
from maxlm.evaluate.scoring import Request, Score
from maxlm.model import decoder
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings

MESHES = [{}, {"fsdp": 4, "tensor": 2}, {"data": 2, "context": 2, "fsdp": 2}, {"pipeline": 2, "data": 2, "fsdp": 2}]
BOS, EOS = 0, 1
# Of two joined characters one token; "中国" lies across the border between "中" and "国".
MERGES = [("a", "b"), ("中", "国"), (" ", "a")]
CHARACTERS = ["<s>", "</s>", *"abcdefgh .中国人"]
PIECES = CHARACTERS + ["".join(pair) for pair in MERGES]
CONFIG = model_config(logit_softcap=5.0, vocab_size=len(PIECES))

CLOZE = [
    {"text": "abc", "answer": "de", "topic": "letters"},
    {"text": "中", "answer": ["人", "a人"], "topic": "han"},
    {"text": "hgf ", "answer": ["a", "b", "cc"]},
    {"text": "fed", "answer": "c", "topic": "letters"},
]
CHOICE = [
    {"text": "abc", "choices": ["d", "efg", " ab"], "answer": 0, "topic": "letters"},
    {"choices": ["中国人", "人中"], "answer": 1, "topic": "han"},
    {"text": "h", "choices": ["c", "d"], "answer": 1, "topic": "letters"},
    {"text": "gg" * 60, "choices": ["人", "bbb"], "answer": 0},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    Library(BPE({piece: number for number, piece in enumerate(PIECES)}, MERGES)).save(str(directory / "tokenizer.json"))
    entry = TokenizerEntry(kind="tokenizers", vocab_size=len(PIECES), bos_id=BOS, eos_id=EOS, files={})
    return Tokenizer(directory, entry)


@pytest.fixture(scope="module")
def model() -> tuple:
    _, shapes, axes = decoder.abstract(CONFIG)
    random = np.random.default_rng(4)
    return shapes, axes, jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


@pytest.fixture
def ask(tmp_path: Path):
    """ask(lines) -> the questions of a file of these lines."""

    def write(lines: list[dict]) -> Questions:
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return read_questions(path)

    return write


@pytest.fixture(scope="module")
def alone(model):
    """alone(ids) -> log probabilities [S, V] after every id of one text, in float64."""
    graphdef, *_ = decoder.abstract(CONFIG)
    logits = jax.jit(lambda tokens: nnx.merge(graphdef, model[-1])(tokens))

    def log_probabilities(ids: list[int]) -> np.ndarray:
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(jax.nn.log_softmax(np.asarray(logits(padded), np.float64)[0, : len(ids)]))

    return log_probabilities


def measure(model: tuple, exam: Exam, sizes: dict[str, int]) -> Result:
    shapes, axes, params = model
    graphdef, *_ = decoder.abstract(CONFIG, pipeline=PipelineConfig(microbatches=2))
    mesh = build_mesh(MeshConfig(**{"fsdp": 1} | sizes), jax.devices()[: math.prod(sizes.values())])
    placed = jax.device_put(params, tree_shardings(axes, shapes, mesh))
    return knowledge.evaluate(graphdef, placed, exam, mesh=mesh, rows=8, chunk=64)


def scored(alone, tokenizer: Tokenizer, text: str, answer: str) -> tuple[float, bool]:
    """Logarithm of an answer's probability and whether it is the greedy one, where no token lies across the border."""
    before, whole = [BOS, *tokenizer.encode(text)], [BOS, *tokenizer.encode(text + answer)]
    assert whole[: len(before)] == before
    found, places = alone(whole), range(len(before), len(whole))
    likeliest = all(found[place - 1].argmax() == whole[place] for place in places)
    return sum(found[place - 1, whole[place]] for place in places), likeliest


def known(alone, tokenizer: Tokenizer) -> dict:
    """A question that the model answers rightly: of some texts the first that it continues with a letter."""
    for text in "cdefgh":
        likeliest = PIECES[alone([BOS, *tokenizer.encode(text)])[-1].argmax()]
        if likeliest in CHARACTERS[2:]:
            return {"text": text, "answer": ["中国", likeliest]}
    raise AssertionError("the model continues no text with a letter")


def test_cloze_figures_are_those_of_the_whole_logits(model, tokenizer, ask, alone) -> None:
    lines = [*CLOZE, known(alone, tokenizer)]
    result = measure(model, encode("t", ask(lines), tokenizer, limit=128), {})
    rights, bits, sizes = [], [], []
    for line in lines:
        text = line["text"].rstrip()
        answers = [line["answer"]] if isinstance(line["answer"], str) else line["answer"]
        answers = [line["text"][len(text) :] + answer for answer in answers]
        found = [scored(alone, tokenizer, text, answer) for answer in answers]
        rights.append(any(likeliest for _, likeliest in found))
        best = max(range(len(found)), key=lambda number: found[number][0])
        bits.append(-found[best][0] / math.log(2))
        sizes.append(len(answers[best].encode()))
    assert rights[-1] and not all(rights)
    assert {"acc", "bits_per_byte"} == set(result.metrics) == set(result.stderr)
    assert result.metrics["acc"] == pytest.approx(np.mean(rights))
    assert result.metrics["bits_per_byte"] == pytest.approx(sum(bits) / sum(sizes), rel=1e-5)
    assert result.stderr["acc"] == pytest.approx(np.std(rights, ddof=1) / math.sqrt(5))
    assert result.items == 5 and set(result.topics) == {"letters", "han"}
    assert result.topics["han"] == pytest.approx(
        {"items": 1, "acc": float(rights[1]), "bits_per_byte": bits[1] / sizes[1]}, rel=1e-5
    )


def test_choice_figures_are_those_of_the_whole_logits(model, tokenizer, ask, alone) -> None:
    exam = encode("t", ask(CHOICE), tokenizer, limit=128)
    result, wanted = measure(model, exam, {}), {"acc": [], "acc_norm": [], "probability": []}
    bits, sizes = 0.0, 0
    for line in CHOICE:
        found = np.array([scored(alone, tokenizer, line.get("text", ""), choice)[0] for choice in line["choices"]])
        lengths, right = np.array([len(choice.encode()) for choice in line["choices"]]), line["answer"]
        wanted["acc"].append(found.argmax() == right)
        wanted["acc_norm"].append((found / lengths).argmax() == right)
        wanted["probability"].append(np.exp(found[right]) / np.exp(found).sum())
        bits, sizes = bits - found[right] / math.log(2), sizes + lengths[right]
    assert set(result.metrics) == {*wanted, "bits_per_byte"}
    for name, values in wanted.items():
        assert result.metrics[name] == pytest.approx(np.mean(values), rel=1e-5)
        assert result.stderr[name] == pytest.approx(np.std(values, ddof=1) / 2, rel=1e-5)
    assert result.metrics["bits_per_byte"] == pytest.approx(bits / sizes, rel=1e-5)
    assert [result.topics[topic]["items"] for topic in ("letters", "han")] == [2, 1]
    line = describe(exam, result, "float32")
    assert line["settings"] == {
        "kind": "knowledge",
        "sha256": exam.questions.sha256,
        "format": 1,
        "dtype": "float32",
        "chance": pytest.approx((1 / 3 + 3 / 2) / 4),
    }
    assert (line["task"], line["items"], "left_out" in line) == ("t", 4, False)


@pytest.mark.parametrize("sizes", MESHES[1:], ids="-".join)
def test_figures_do_not_depend_on_the_mesh(model, tokenizer, ask, sizes: dict) -> None:
    exam = encode("t", ask(CHOICE), tokenizer, limit=128)
    one, many = measure(model, exam, {}), measure(model, exam, sizes)
    for field in ("metrics", "stderr"):
        assert getattr(many, field) == pytest.approx(getattr(one, field), rel=1e-5)


def test_texts_begin_as_documents_do(tokenizer, ask) -> None:
    questions = ask([{"text": "cd", "answer": "e"}])
    assert encode("t", questions, tokenizer, 8).requests == [
        Request([BOS, *tokenizer.encode("cd")], tokenizer.encode("e"))
    ]
    without = Tokenizer(tokenizer.directory, tokenizer.entry.model_copy(update={"bos_id": None}))
    assert encode("t", questions, without, 8).requests[0].context[0] == EOS


def test_a_border_lies_after_the_ids_of_the_text_alone(tokenizer, ask) -> None:
    ids = {piece: number for number, piece in enumerate(PIECES)}
    lines = [
        {"text": "c ", "answer": "a"},  # the blank goes with the answer, with which it is one token
        {"text": "c中", "answer": "国人"},  # 国 is in a token with 中: the answer is 人 alone
        {"text": "中", "answer": "国"},  # one token in all, which is the answer's
        {"text": " ", "answer": "c"},
    ]
    exam = encode("t", ask(lines), tokenizer, limit=8)
    assert exam.requests == [
        Request([BOS, ids["c"]], [ids[" a"]]),
        Request([BOS, ids["c"], ids["中"]], [ids["人"]]),
        Request([BOS], [ids["中国"]]),
        Request([BOS], [ids[" "], ids["c"]]),
    ]
    assert exam.bytes == [2, 6, 3, 2] and exam.across == 2
    (note,) = exam.notes
    assert note.endswith("2 of 4 answers share a token with their text")


def test_what_does_not_fit_is_left_out_and_told(tokenizer, ask) -> None:
    lines = [{"text": "c", "answer": "d"}, {"text": "c" * 8, "answer": ["d", "dd"]}, {"text": "c" * 7, "answer": "d"}]
    exam = encode("t", ask(lines), tokenizer, limit=8)
    assert [item.line for item in exam.items] == [1, 3] and len(exam.requests) == len(exam.bytes) == 2
    (note,) = exam.notes
    assert "1 of 3 questions are longer than the 8 tokens" in note and "(lines 2)" in note
    line = describe(exam, knowledge.results(exam, [Score(-1.0, True)] * 2), "float32")
    assert (line["items"], line["left_out"], "chance" in line["settings"]) == (2, 1, False)
    with pytest.raises(DataError, match="no question fits into the 1 tokens"):
        encode("t", ask(lines[1:]), tokenizer, limit=1)


def test_many_questions_are_encoded_in_parts(tokenizer, ask, monkeypatch) -> None:
    questions = ask(CLOZE)
    wanted = encode("t", questions, tokenizer, limit=128)
    monkeypatch.setattr(knowledge, "AT_ONCE", 3)
    assert encode("t", questions, tokenizer, limit=128) == wanted


LOGPROBS = st.floats(-50, 0, allow_nan=False)
ITEMS = st.lists(st.lists(st.tuples(LOGPROBS, st.booleans(), st.integers(1, 9)), min_size=2, max_size=4), min_size=2)


def drawn_exam(drawn: list, right: int | None) -> tuple[Exam, list[Score]]:
    items = [
        Question(str(n), None, "", tuple("x" * size for *_, size in answers), right, n)
        for n, answers in enumerate(drawn)
    ]
    kind = "cloze" if right is None else "choice"
    sizes = [size for answers in drawn for *_, size in answers]
    scores = [Score(logprob, likeliest) for answers in drawn for logprob, likeliest, _ in answers]
    return Exam("t", Questions(Path("t"), "", kind, items), items, [], sizes, [], 0, 8), scores


@settings(derandomize=True, deadline=None, max_examples=60)
@given(ITEMS)
def test_choices_are_ranked_and_their_probabilities_sum_to_one(drawn: list) -> None:
    every = [knowledge.results(*drawn_exam([answers], number)) for answers in drawn for number in range(len(answers))]
    rest = iter(every)
    for answers in drawn:
        found = [next(rest) for _ in answers]
        assert sum(result.metrics["probability"] for result in found) == pytest.approx(1)
        assert sum(result.metrics["acc"] for result in found) == 1
        best = max(range(len(answers)), key=lambda number: answers[number][0])
        assert found[best].metrics["acc"] == 1 and found[best].metrics["probability"] >= 1 / len(answers) - 1e-9
        assert not found[best].stderr  # of one question


@settings(derandomize=True, deadline=None, max_examples=60)
@given(ITEMS)
def test_bits_per_byte_are_bits_over_bytes_and_bits_grow_as_answers_are_less_likely(drawn: list) -> None:
    exam, scores = drawn_exam(drawn, None)
    result = knowledge.results(exam, scores)
    best = [max(answers, key=lambda answer: answer[0]) for answers in drawn]
    bits, sizes = -np.array([logprob for logprob, *_ in best]) / math.log(2), np.array([size for *_, size in best])
    ratio = bits.sum() / sizes.sum()
    assert result.metrics["bits_per_byte"] == pytest.approx(ratio)
    assert result.metrics["acc"] == np.mean([any(likeliest for _, likeliest, _ in answers) for answers in drawn])
    spread = np.std(bits - ratio * sizes, ddof=1) / math.sqrt(len(drawn)) / sizes.mean()
    assert result.stderr["bits_per_byte"] == pytest.approx(spread, abs=1e-12)


def test_figures_of_a_broken_model_are_not_finite() -> None:
    exam, scores = drawn_exam([[(-1.0, True, 1), (-2.0, True, 1)]] * 2, 0)
    metrics = knowledge.results(exam, [Score(math.nan, False), *scores[1:]]).metrics
    assert metrics and all(math.isnan(value) for value in metrics.values())
