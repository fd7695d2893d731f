"""How likely a model finds texts that continue others: what multiple choice, cloze and lm-eval's tasks ask of it.

    scorer = Scorer(graphdef, params, mesh, rows=8, max_length=2048)
    scores = scorer.score([Request(context_ids, continuation_ids), ...])

What requests read is packed whole into rows of a few widths, each text as a document of its own: little is padding,
whatever their lengths, and few programs are compiled. Requests that read the same tokens (the one-token answers to a
question) read them once, and logits are computed where a request has a target, nowhere else. A score depends on its
request alone. Axis letters as in model/layers.py; T targets of a row.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from maxlm.errors import ConfigError
from maxlm.evaluate.perplexity import ahead
from maxlm.model.loss import target_losses
from maxlm.parallel.batch import addressed_rows, place, sequence_order
from maxlm.parallel.sharding import RULES, shard

LEAST_WIDTH = 256  # of a row, in tokens; the wider ones double up to the longest request's
FULL_WIDTH = 4096  # `rows` are of this width, or of the longest request's where that is less
# Batches have all rows or a part of them, and targets in all columns or in a part, by steps of this factor: smaller
# steps would save little computation and compile many programs.
STEP = 4


class Request(NamedTuple):
    context: Sequence[int]  # one token at least
    continuation: Sequence[int]


class Score(NamedTuple):
    logprob: float  # natural logarithm of the continuation's probability
    greedy: bool  # whether each of its tokens is the most likely one


class Text(NamedTuple):
    """What some requests read alike."""

    ids: tuple[int, ...]  # all tokens but the last, which is only predicted
    requests: list[tuple[int, tuple[int, ...]]]  # number, and the targets: they follow the text's last tokens

    @property
    def targets(self) -> int:
        return sum(len(targets) for _, targets in self.requests)


class Placed(NamedTuple):
    text: Text
    start: int  # first column


class Batch(NamedTuple):
    width: int  # tokens of a row
    targets: int  # most of a row
    size: int  # rows
    rows: list[list[Placed]]  # of every row that has some

    def slots(self) -> Iterator[tuple[int, int, int, int, tuple[int, ...]]]:
        """(row, number of the request, its first slot, column of its first target, its targets)."""
        for row, texts in enumerate(self.rows):
            slot = 0
            for text, start in texts:
                for number, targets in text.requests:
                    yield row, number, slot, start + len(text.ids) - len(targets), targets
                    slot += len(targets)


class Scorer:
    """The programs that score requests for one model on a mesh.

    Args:
        rows: of a batch at FULL_WIDTH (at `max_length` where that is less), a multiple of what the mesh divides;
            narrower batches have more rows, wider ones fewer.
        max_length: most tokens of a row; of a longer request the last ones are read.
        chunk: positions of a row whose logits exist at one time.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, params: dict, mesh: Mesh, *, rows: int, max_length: int, chunk: int = 512
    ):
        self._graphdef, self._params, self._mesh = graphdef, params, mesh
        self._rows, self.max_length, self._chunk = rows, max_length, chunk
        # Stages of a pipeline divide a batch into parts of their own as well, so there every batch has `rows` at least.
        shards = math.prod(mesh.shape[name] for name in RULES["batch"])
        self._least_rows = rows if mesh.shape["pipeline"] > 1 else shards
        self._columns = 2 * mesh.shape["context"] * mesh.shape["tensor"]  # widths are multiples of this

    def score(
        self,
        requests: Sequence[Request],
        progress: Callable[[Iterable, int], Iterable] = lambda scored, total: scored,
    ) -> list[Score]:
        """Scores in the order of the requests; raises `ConfigError` for a request without a context.

        `progress` passes on what it is given, once for every request that is scored, and their number.
        """
        texts = self.texts(requests)
        total = sum(len(text.requests) for text in texts)
        scores: list[Score] = [Score(0.0, True)] * len(requests)
        with jax.set_mesh(self._mesh):
            for number, score in progress(self._scores(list(self.batches(texts))), total):
                scores[number] = score
        return scores

    def texts(self, requests: Sequence[Request]) -> list[Text]:
        """What is read for the requests that have targets."""
        found: dict[tuple[int, ...], Text] = {}
        for number, (context, continuation) in enumerate(requests):
            if not len(context):
                raise ConfigError(f"request {number + 1} has no context; expected one token at least, such as the BOS")
            ids = tuple(map(int, (*context, *continuation)))[-(self.max_length + 1) :]
            if targets := min(len(continuation), len(ids) - 1):
                text = found.setdefault(ids[:-1], Text(ids[:-1], []))
                text.requests.append((number, ids[len(ids) - targets :]))
        return list(found.values())

    def batches(self, texts: Iterable[Text]) -> Iterator[Batch]:
        """The texts in rows, longest first, so that what does not fit into memory shows at once; every row is filled
        with the longest that still fit."""
        by_length: dict[int, list[Text]] = {}
        for text in texts:
            by_length.setdefault(len(text.ids), []).append(text)
        lengths = sorted(by_length)
        while lengths:
            width = self._width(lengths[-1])
            full, rows = self._most_rows(width), []
            while lengths and len(rows) < full:
                rows.append([])
                left = width
                while place := bisect_right(lengths, left):
                    length = lengths[place - 1]
                    rows[-1].append(Placed(by_length[length].pop(), width - left))
                    left -= length
                    if not by_length[length]:
                        del lengths[place - 1]
            size = full
            while size % (STEP * self._least_rows) == 0 and size // STEP >= len(rows):
                size //= STEP
            yield Batch(width, self._targets(rows, width), size, rows)

    def _width(self, length: int) -> int:
        doubled = LEAST_WIDTH
        while doubled < length:
            doubled *= 2
        return self._rounded(min(doubled, max(self.max_length, length)))

    def _targets(self, rows: list[list[Placed]], width: int) -> int:
        """Slots for targets: enough of them for the row with the most."""
        most, slots = max(sum(text.targets for text, _ in row) for row in rows), width
        while self._rounded(-(-slots // STEP)) >= most and slots > self._columns:
            slots = self._rounded(-(-slots // STEP))
        while slots < most:  # many requests that read one text
            slots *= 2
        return slots

    def _rounded(self, columns: int) -> int:
        return math.ceil(columns / self._columns) * self._columns

    def _most_rows(self, width: int) -> int:
        rows = self._rows * min(FULL_WIDTH, self._rounded(self.max_length)) // width
        return max(1, rows // self._least_rows) * self._least_rows

    def _scores(self, batches: list[Batch]) -> Iterator[tuple[int, Score]]:
        for batch, found in ahead(zip(batches, map(self._run, batches), strict=True)):
            nll_BT, likeliest_BT = self._in_order(batch, jax.device_get(found))
            for row, number, slot, _, targets in batch.slots():
                part = slice(slot, slot + len(targets))
                logprob = -float(np.sum(nll_BT[row, part], dtype=np.float64))
                yield number, Score(logprob, bool(likeliest_BT[row, part].all()))

    def _run(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        rows = addressed_rows(batch.size, self._mesh)
        local = {row: number for number, row in enumerate(rows)}
        arrays = {
            name: np.zeros((len(rows), columns), np.int32)
            for columns, names in (
                (batch.width, ("tokens", "segment_ids", "positions")),
                (batch.targets, ("places", "targets")),
            )
            for name in names
        }
        arrays["weights"] = np.zeros(arrays["targets"].shape, np.float32)
        for row, texts in enumerate(batch.rows):
            for segment, (text, start) in enumerate(texts if row in local else [], 1):
                place_of = local[row], slice(start, start + len(text.ids))
                arrays["tokens"][place_of], arrays["segment_ids"][place_of] = text.ids, segment
                arrays["positions"][place_of] = np.arange(len(text.ids))
        stored = np.argsort(sequence_order(batch.width, self._mesh.shape["context"]))
        for row, _, slot, column, targets in batch.slots():
            if row in local:
                place_of = local[row], slice(slot, slot + len(targets))
                arrays["places"][place_of] = stored[column : column + len(targets)]
                arrays["targets"][place_of], arrays["weights"][place_of] = targets, 1
        return _losses(self._graphdef, self._chunk, self._params, place(arrays, rows, batch.size, self._mesh))

    def _in_order(self, batch: Batch, found: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Slots as they were given, in which context shards do not keep them."""
        order = np.argsort(sequence_order(batch.targets, self._mesh.shape["context"]))
        return [array[:, order] for array in found]


# Replicated, so that every process can read them.
@partial(jax.jit, static_argnums=(0, 1), out_shardings=PartitionSpec())
def _losses(graphdef: nnx.GraphDef, chunk: int, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Nats of every target and whether it is the most likely token, float32 and bool [B, T]."""
    model = nnx.merge(graphdef, params)
    x_BSD = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"]).x_BSD
    x_BTD = jnp.take_along_axis(x_BSD, batch["places"][..., None], axis=1)
    x_BTD = shard(x_BTD, "batch", "sequence", None)
    arguments = batch["targets"], batch["weights"], chunk, model.config.logit_softcap
    return target_losses(x_BTD, model.output_matrix(), *arguments)
