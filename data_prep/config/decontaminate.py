"""Benchmarks that must not be trained on."""

from maxlm.config import Section


class DecontaminateConfig(Section):
    pass
