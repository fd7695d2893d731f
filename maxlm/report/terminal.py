"""What tables for the terminal share: where they are printed, and text that cannot move its cursor."""

from rich.console import Console


def console() -> Console:
    # In a file or a pipe there is no width to keep to.
    return Console() if Console().is_terminal else Console(width=140)


def visible(text: str) -> str:
    """The text with every character that prints nothing, or that a terminal obeys, written as its number."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else f"\\x{ord(character):02x}"
        for character in text
    )
