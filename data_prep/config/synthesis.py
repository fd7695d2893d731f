"""Synthetic data: seeds, prompts, and the server that answers them."""

from maxlm.config import Section


class Synthesis(Section):
    pass
