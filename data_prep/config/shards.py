"""The shards that training reads: their size, and the order of the documents in them."""

from pydantic import Field

from maxlm.config import Count, Name, Section


class OrderConfig(Section):
    by: Name = Field(
        description="Column of the documents that orders them, a rank in [0, 1), such as prose_rank; documents without "
        "one lie anywhere."
    )
    buckets: Count = Field(
        16,
        description="Number of parts of equal width in rank that follow each other; the documents of one are shuffled.",
    )
    descending: bool = Field(False, description="Write the documents of the highest ranks first.")
    sources: list[Name] | None = Field(None, description="Sources that are ordered; null for all of them.")


class ShardsConfig(Section):
    shard_tokens: Count = Field(
        2**29, description="Tokens per output shard, on average; one file is written at a time."
    )
    order: OrderConfig | None = Field(
        None,
        description="Write the training documents of a source in an order, for data.sources.NAME.order as_written; "
        "null to shuffle them over the whole source.",
    )
