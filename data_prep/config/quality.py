"""Quality by models: what scores documents, and which of them stay."""

from maxlm.config import Section


class QualityConfig(Section):
    pass
