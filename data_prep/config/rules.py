"""Quality by rules: profiles of thresholds, and lines that are removed."""

from maxlm.config import Section


class RulesConfig(Section):
    pass
