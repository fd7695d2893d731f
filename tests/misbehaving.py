"""An extractor that hangs, crashes and fails when a page says so: what bad pages make of real ones.

A module of its own, which a process imports quickly.
"""

import ctypes
import os
from functools import partial
from pathlib import Path

MEMORY = 2**28
kept = []


def misbehave(marks: Path, page: bytes, charset: str | None) -> str:
    """Do what the first word says and return the others; once-WORD does it the first time alone, noted in `marks`."""
    word, _, rest = page.decode().partition(" ")
    if word.startswith("once-"):
        first = not (marks / rest).exists()
        (marks / rest).touch()
        word = word.removeprefix("once-") if first else "text"
    if word == "hang":
        # In C and with the interpreter's lock held, as a parser hangs: no Python code can end it.
        ctypes.PyDLL(None).sleep(600)
    elif word == "segfault":
        ctypes.string_at(0)
    elif word == "exit":
        os._exit(3)
    elif word == "memory":
        bytearray(2 * MEMORY)
    elif word == "hoard":
        kept.append(bytearray(MEMORY // 3))
    elif word == "raise":
        raise RuntimeError("a fault of the extractor")
    elif word == "deep":
        return misbehave(marks, page, charset)
    return rest


def make_misbehaving(marks: Path):
    return partial(misbehave, marks)


def make_broken(error: Exception):
    raise error


def make_dying():
    os._exit(7)
