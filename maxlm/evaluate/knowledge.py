"""What a model knows: its answers to files of questions (maxlm/evaluate/questions.py), cloze and multiple choice.

    exam = encode("facts", read_questions("facts.jsonl"), tokenizer, limit=2048)
    result = evaluate(graphdef, params, exam, mesh=mesh, rows=8)

Every text begins as a document does in training: with the BOS, or where the tokenizer has none with the EOS, which ends
the document before. A text and its answer are encoded as a whole, blanks at the end of the text going with the answer,
and what is beyond as many ids as the text alone has is the answer's, as in lm-eval: of a token across the border the
answer has no part. Such answers are counted (`across`); one that would have no token at all has the last one.

A model without a BOS whose documents were masked from each other has learned nothing of what begins a text: whole texts
should begin with the same token there (benchmarks/2026-11-29-questions.md).

Measured are, over the questions of a file and of each of its topics,

    acc            cloze: share in which some accepted answer is, token for token, what the model finds most likely;
                   choice: share in which the right choice has the highest probability
    acc_norm       choice: the highest probability per UTF-8 byte, that is log p / bytes
    probability    choice: of the right one among the choices, mean; without knowledge about 1 / choices
    bits_per_byte  of the right answers, bits over UTF-8 bytes; of several accepted ones the likeliest

Standard errors are those of a mean over questions (sample standard deviation / sqrt n), of bits per byte those of the
ratio of two sums (Cochran 1977, Sampling Techniques, section 2.11). Bytes are those of what is scored: a separator and
blanks count.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError
from maxlm.evaluate.questions import VERSION, Question, Questions, read_questions
from maxlm.evaluate.scoring import Request, Score, Scorer
from maxlm.report.progress import track

AT_ONCE = 1024  # questions that are encoded together

Answer = tuple[Request, int, bool]  # as it is scored, its bytes, whether it shares a token with its text


class Exam(NamedTuple):
    """Questions as a model with some tokenizer reads them."""

    name: str
    questions: Questions
    items: list[Question]  # those that fit into the model's context
    requests: list[Request]  # of every answer of every item, in order
    bytes: list[int]  # of every request's answer
    left_out: list[Question]  # those that do not fit
    across: int  # answers that share a token with their text
    limit: int  # tokens of the model's context

    @property
    def sha256(self) -> str:
        return self.questions.sha256

    @property
    def notes(self) -> list[str]:
        """What a person should know of it, a line each."""
        path, notes = self.questions.path, []
        if self.left_out:
            lines = ", ".join(str(question.line) for question in self.left_out[:5])
            more = ", ..." if len(self.left_out) > 5 else ""
            notes.append(
                f"{path}: {len(self.left_out)} of {len(self.left_out) + len(self.items)} questions are longer than the "
                f"{self.limit} tokens that the model is made for and are left out (lines {lines}{more})"
            )
        if self.across:
            notes.append(f"{path}: {self.across} of {len(self.requests)} answers share a token with their text")
        return notes


class Result(NamedTuple):
    """Figures by the names above; of a single question there is no standard error."""

    metrics: dict[str, float]
    stderr: dict[str, float]
    items: int
    topics: dict[str, dict[str, float]]


def open_exams(files: Mapping[str, str], tokenizer: Tokenizer, limit: int) -> dict[str, Exam]:
    """Files of questions by name, ready to be asked; errors as of `read_questions` and `encode`."""
    return {name: encode(name, read_questions(path), tokenizer, limit) for name, path in files.items()}


def encode(name: str, questions: Questions, tokenizer: Tokenizer, limit: int) -> Exam:
    """The requests of a file for a model that reads up to `limit` tokens.

    Raises `DataError` naming the file where no question fits.
    """
    exam, across = Exam(name, questions, [], [], [], [], 0, limit), 0
    encoded = _encoded(questions.items, tokenizer)
    for question, answers in track(encoded, f"encoding {questions.path}", len(questions.items), "questions"):
        if max(len(request.context) + len(request.continuation) - 1 for request, _, _ in answers) > limit:
            exam.left_out.append(question)
            continue
        exam.items.append(question)
        exam.requests.extend(request for request, _, _ in answers)
        exam.bytes.extend(size for _, size, _ in answers)
        across += sum(crosses for _, _, crosses in answers)
    if not exam.items:
        raise DataError(f"{questions.path}: no question fits into the {limit} tokens that the model is made for")
    return exam._replace(across=across)


def _encoded(items: Sequence[Question], tokenizer: Tokenizer) -> Iterator[tuple[Question, list[Answer]]]:
    """Every question with its answers, in order."""
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    for first in range(0, len(items), AT_ONCE):
        part = items[first : first + AT_ONCE]
        pairs = [_border(item.text, answer) for item in part for answer in item.answers]
        texts = tokenizer.encode_batch([item.text.rstrip() for item in part])
        wholes = iter(tokenizer.encode_batch([text + answer for text, answer in pairs]))
        sizes = iter([len(answer.encode()) for _, answer in pairs])
        for item, text in zip(part, texts, strict=True):
            splits = [_split(start, text, next(wholes)) for _ in item.answers]
            yield item, [(request, next(sizes), crosses) for request, crosses in splits]


def evaluate(
    graphdef: nnx.GraphDef,
    params: dict,
    exam: Exam,
    *,
    mesh: Mesh,
    rows: int,
    chunk: int = 512,
    progress: Callable[[Iterable, int], Iterable] = lambda batches, total: batches,
) -> Result:
    """The model's answers; `rows` of a batch as `Scorer` takes them."""
    scorer = Scorer(graphdef, params, mesh, rows=rows, max_length=exam.limit, chunk=chunk)
    return results(exam, scorer.score(exam.requests, progress))


def results(exam: Exam, scores: Sequence[Score]) -> Result:
    """Figures of a file from the scores of its requests."""
    answered, sizes = iter(scores), iter(exam.bytes)
    figures = [_figures(item, [(next(answered), next(sizes)) for _ in item.answers]) for item in exam.items]
    topics = {}
    for topic in dict.fromkeys(item.topic for item in exam.items if item.topic is not None):
        mine = [figure for figure, item in zip(figures, exam.items, strict=True) if item.topic == topic]
        topics[topic] = {"items": len(mine)} | _means(mine)[0]
    return Result(*_means(figures), len(figures), topics)


def settings(exam: Exam, dtype: str) -> dict[str, Any]:
    """All that makes two lines of a file comparable; of choices also what guessing gives."""
    found = {"kind": "knowledge", "sha256": exam.sha256, "format": VERSION, "dtype": dtype}
    if exam.questions.kind == "choice":
        found["chance"] = math.fsum(1 / len(item.answers) for item in exam.items) / len(exam.items)
    return found


def describe(exam: Exam, result: Result, dtype: str) -> dict[str, Any]:
    """What a line of eval.jsonl says of a file."""
    left_out = {"left_out": len(exam.left_out)} if exam.left_out else {}
    line = {"task": exam.name, "metrics": result.metrics, "stderr": result.stderr, "items": result.items}
    return line | left_out | {"topics": result.topics, "settings": settings(exam, dtype)}


def _border(text: str, answer: str) -> tuple[str, str]:
    """Blanks at the end of a text belong to the answer: tokens carry the blank before a word."""
    kept = text.rstrip()
    return kept, text[len(kept) :] + answer


def _split(start: int, text: np.ndarray, whole: np.ndarray) -> tuple[Request, bool]:
    """A request, and whether a token lies across the border."""
    crosses = len(whole) < len(text) or bool((whole[: len(text)] != text).any())
    if len(whole) > len(text):
        return Request([start, *text.tolist()], whole[len(text) :].tolist()), crosses
    return Request([start, *whole[:-1].tolist()], whole[-1:].tolist()), True


def _figures(item: Question, answered: Sequence[tuple[Score, int]]) -> dict[str, Any]:
    """What one question adds to the figures of its file; those of a model that is broken are not finite."""
    logprobs = np.array([score.logprob for score, _ in answered])
    sizes = np.array([size for _, size in answered])
    right = item.right
    if right is None:
        best = int(logprobs.argmax())
        found = {"acc": float(any(score.greedy for score, _ in answered))}
    else:
        best, most = right, logprobs.max()
        likely = np.exp(logprobs - most)
        found = {"acc": float(logprobs.argmax() == right), "acc_norm": float((logprobs / sizes).argmax() == right)}
        found["probability"] = float(likely[right] / likely.sum())
    if not np.isfinite(logprobs).all():
        found = dict.fromkeys(found, math.nan)
    return found | {"bits_per_byte": (-float(logprobs[best]) / math.log(2), int(sizes[best]))}


def _means(figures: Sequence[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Figures over questions, and their standard errors."""
    means, errors = {}, {}
    for name in figures[0]:
        values = np.array([figure[name] for figure in figures], np.float64)
        weights = np.ones(len(values))
        if values.ndim == 2:
            values, weights = values.T
        means[name] = float(values.sum() / weights.sum())
        if (count := len(values)) > 1:
            squares = np.sum((values - means[name] * weights) ** 2)
            errors[name] = float(math.sqrt(count / (count - 1) * squares) / weights.sum())
    return means, errors
