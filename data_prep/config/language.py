"""Language and script of documents, and folding of Chinese script."""

from maxlm.config import Section


class LanguageConfig(Section):
    pass
