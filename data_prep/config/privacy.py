"""Personal data and secrets: what is looked for, and what becomes of it."""

from maxlm.config import Section


class PrivacyConfig(Section):
    pass
