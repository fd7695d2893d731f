"""Pages -> documents: while the child extracts one batch, the next one is read."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from data_prep.config import ExtractConfig
from data_prep.ingest import extractors
from data_prep.ingest.child import Child, Failure
from data_prep.ingest.pages import Page
from data_prep.ingest.records import Document, Rejected
from maxlm.errors import ConfigError

VERSION = 1
BATCH_BYTES, BATCH_PAGES = 2**20, 256


def settings(config: ExtractConfig) -> list:
    """What enters the key of results with extracted text; raises `ConfigError` if the extractor is not installed."""
    from importlib.metadata import PackageNotFoundError

    name = config.extractor
    try:
        library = extractors.version(name)
    except PackageNotFoundError:
        extra = "prep" if name == "resiliparse" else name
        raise ConfigError(f"extract.extractor: {name} is not installed: pip install 'maxlm[{extra}]'") from None
    limits = config.model_dump(include={"seconds", "max_page_bytes", "memory"})
    return [VERSION, name, library, getattr(config, name).model_dump(), limits]


# The process of this worker, with what it was made for; it outlives tasks, as its start takes as long as 100 pages.
_child: tuple[str, Child] | None = None


def child_of_worker(config: ExtractConfig) -> Child:
    global _child
    wanted = config.model_dump_json()
    if _child is None or _child[0] != wanted:
        if _child is not None:
            _child[1].close()
        make = partial(extractors.make_extractor, config)
        _child = wanted, Child(make, config.seconds, config.memory)
    return _child[1]


def extracted(read: Iterable[Page | Rejected], child: Child, counts: dict[str, Any]) -> Iterator[Document | Rejected]:
    """The documents of pages, in order; what is no page passes through.

    `counts` gets `pages`, their `bytes` of HTML, and what was `dropped`: {reason: [pages, bytes of HTML]}.
    """
    sent: Sequence[Page | Rejected] = ()
    try:
        for batch in _batches(read):
            texts = child.receive()
            child.send([one for one in batch if isinstance(one, Page)])
            yield from _documents(sent, texts, counts)
            sent = batch
        yield from _documents(sent, child.receive(), counts)
    except BaseException:
        # Texts that nobody waits for any more must not reach the next task.
        child.close()
        raise


def _batches(read: Iterable[Page | Rejected]) -> Iterator[list[Page | Rejected]]:
    batch: list[Page | Rejected] = []
    size = 0
    for one in read:
        batch.append(one)
        size += len(one.html) if isinstance(one, Page) else 0
        if size >= BATCH_BYTES or len(batch) == BATCH_PAGES:
            yield batch
            batch, size = [], 0
    yield batch


def _documents(
    batch: Sequence[Page | Rejected], texts: Sequence[bytes | Failure], counts: dict[str, Any]
) -> Iterator[Document | Rejected]:
    waiting = iter(texts)
    for one in batch:
        if not isinstance(one, Page):
            yield one
            continue
        counts["pages"] += 1
        counts["bytes"] += len(one.html)
        text = next(waiting)
        if isinstance(text, Failure):
            amount = counts["dropped"].setdefault(text.reason, [0, 0])
            amount[0], amount[1] = amount[0] + 1, amount[1] + len(one.html)
        else:
            yield Document(one.id, text, one.origin, one.url, one.language, details=one.details)
