"""The statistics of a document, by their place in a row of int64 numbers.

All are counts, so that a share is the quotient of two columns, exact in float64 as the reference implementations have
it; lengths are in characters (code points). `C4` and `LEFT` counts look at lines and at what line rules left.
"""

NAMES = (
    # Of the text as given.
    "characters",
    "letters_and_digits",
    "words",
    "plain_words",  # words that are not symbols alone
    "plain_word_characters",
    "alphabetic_words",  # words with a letter
    "stop_words",  # different ones
    "hashes",
    "ellipses",
    "lines",  # str.splitlines
    "bullet_lines",
    "ellipsis_lines",
    "line_characters",
    "longest_line",
    # Repetition in the text as given.
    "paragraphs",
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    "newline_lines",  # between runs of newlines
    "duplicate_lines",
    "duplicate_line_characters",
    *(f"top_{n}_gram_characters" for n in (2, 3, 4)),
    *(f"duplicate_{n}_gram_characters" for n in range(5, 11)),
    # Of lines that the line rules before them left.
    "lorem_ipsum_lines",
    "curly_bracket_lines",
    "sentences",
    # Of the text that line rules left.
    "left_characters",  # without newlines
    "left_lines",  # that are not blank
    "left_stop_lines",
    "left_short_lines",
    "left_duplicate_characters",
    "left_newlines",
    "left_words",
)
COUNT = len(NAMES)
# The first column of each group, for compiled loops.
TEXT, REPETITION, TOP_GRAMS, DUPLICATE_GRAMS, C4, LEFT = (
    NAMES.index(name)
    for name in (
        "characters",
        "paragraphs",
        "top_2_gram_characters",
        "duplicate_5_gram_characters",
        "lorem_ipsum_lines",
        "left_characters",
    )
)
WORDS = NAMES.index("words")
LEFT_WORDS = NAMES.index("left_words")
