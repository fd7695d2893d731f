"""Line rules as compiled loops take them: numbers of what happens to a line, and places of settings."""

from dataclasses import dataclass

import numpy as np

from data_prep.rules.phrases import Phrases

# What happens to a line, by number; the last two happen to lines that are left.
KINDS = (
    "kept",
    "boilerplate",
    "short run",
    "few words",
    "c4: long word",
    "c4: no final punctuation",
    "c4: few words",
    "c4: javascript",
    "c4: policy",
    "c4: citations",
    "white space",
)
(
    KEPT,
    BOILERPLATE,
    SHORT_RUN,
    FEW_WORDS,
    C4_LONG_WORD,
    C4_NO_PUNCTUATION,
    C4_FEW_WORDS,
    C4_JAVASCRIPT,
    C4_POLICY,
    C4_CITATIONS,
    WHITE_SPACE,
) = range(len(KINDS))
# Groups of phrases.
BOILERPLATE_GROUP, LOREM_GROUP, JAVASCRIPT_GROUP, POLICY_GROUP = range(4)
# Places of settings; 0 where a rule is off.
(
    BOILERPLATE_CHARACTERS,
    RUN_CHARACTERS,
    RUN_LINES,
    RUN_ANYWHERE,
    LEAST_WORDS,
    C4,
    C4_LINES,
    WORD_CHARACTERS,
    CITATIONS,
    PUNCTUATION,
    C4_LEAST_WORDS,
) = range(11)
SETTINGS = 11


@dataclass(frozen=True)
class LineRules:
    """`settings` int64 [SETTINGS], and phrases by group."""

    settings: np.ndarray
    phrases: Phrases

    @property
    def at_work(self) -> bool:
        """Whether lines are removed, or counted for C4."""
        return bool(self.settings.any())
