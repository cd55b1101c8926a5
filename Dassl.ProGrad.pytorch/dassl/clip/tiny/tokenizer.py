"""A word tokeniser: known words are one token, others are spelled.

Ids: 0 pad, 1 start, 2 and 3 around a spelled word, 4 an unknown sign, then single letters and digits, then
the lines of words.txt, last the end token: the highest id, so that `argmax` finds a text's end as in CLIP.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

PAD, START, OPEN, CLOSE, UNKNOWN = range(5)
SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789"
_PIECES = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


class Tokenizer:
    """Text to ids."""

    def __init__(self, words: Iterable[str]):
        """words: known words, without single letters and digits, which are always known."""
        self.pieces = ["", "<start>", "<", ">", "?", *SIGNS, *words]
        self.ids = {piece: i for i, piece in enumerate(self.pieces) if i > UNKNOWN}
        self.end = len(self.pieces)
        self.size = self.end + 1

    def encode(self, text: str, spell: Callable[[str], bool] | None = None) -> list[int]:
        """Ids of a text, start and end included. `spell(word) -> bool`: is this known word to be spelled?"""
        plain = unicodedata.normalize("NFKD", text.lower().replace("_", " "))
        plain = "".join(sign for sign in plain if not unicodedata.combining(sign))
        ids = [START]
        for piece in _PIECES.findall(plain):
            if piece in self.ids and not (spell and len(piece) > 1 and spell(piece)):
                ids.append(self.ids[piece])
            elif len(piece) == 1:
                ids.append(UNKNOWN)
            else:
                ids += [OPEN, *(self.ids[sign] for sign in piece), CLOSE]
        return [*ids, self.end]


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """The tokeniser of the shipped weights."""
    return Tokenizer((Path(__file__).parent / "words.txt").read_text().split())
