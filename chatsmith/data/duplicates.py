"""Texts that say nearly the same, among very many: MinHash finds candidates, their own words decide.

Two texts are alike as far as they share pairs of neighbouring words, or of neighbouring characters where a script has
no spaces between words (Jaccard similarity of the two sets). A text costs 80 bytes while the others are read.

Source: Broder 1997, "On the resemblance and containment of documents"; the bands: Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", 3.4.
"""

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.8  # similarity from which on two texts count as nearly the same
BANDS, ROWS = 20, 5  # a pair of similarity s meets in a band with probability 1 - (1 - s**ROWS)**BANDS: 99.96 % at 0.8
MOST_COMPARED = 32  # texts of a bucket that the others in it are compared with

# one character: Thai, Lao, Khmer, kana, Han; a word: any other letters and digits
_WORD = re.compile(
    r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_END = zlib.crc32(b"\n")  # stands behind the last word of every text
_ODD = np.random.default_rng(0).integers(2**63, size=(2, BANDS * ROWS), dtype=np.uint64) | np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text without regard to letter case, punctuation and spacing; of a text without any, itself."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold()) or [text]


def similarity(one: Sequence[str], two: Sequence[str]) -> float:
    """Jaccard similarity of the pairs of neighbouring words, in [0, 1]; the last word's neighbour is the end."""
    first, second = _pairs(one), _pairs(two)
    return len(first & second) / len(first | second)


def _pairs(text: Sequence[str]) -> set[tuple[str, str]]:
    return set(zip(text, [*text[1:], "\n"], strict=True))


def sketch(texts: Sequence[Sequence[str]]) -> NDArray[np.uint32]:
    """[len(texts), BANDS]: two texts meet in a band where the two numbers are the same."""
    hashes: list[int] = []
    ends = []
    for text in texts:
        hashes += [zlib.crc32(word.encode("utf-8", "replace")) for word in text]
        hashes.append(_END)
        ends.append(len(hashes) - 1)
    word = np.array(hashes, dtype=np.uint64)
    pair = np.delete(word[:-1] * _MIX + word[1:], ends[:-1])  # none begins at the end of a text
    pair = (pair ^ (pair >> np.uint64(29))) * _MIX
    starts = np.array([0, *ends[:-1]]) - np.arange(len(ends)) + (np.arange(len(ends)) > 0)
    bands = np.zeros((len(texts), BANDS), dtype=np.uint64)
    for number, (factor, offset) in enumerate(_ODD.T):
        least = np.minimum.reduceat((pair * factor + offset) >> np.uint64(32), starts)
        bands[:, number // ROWS] = (bands[:, number // ROWS] + least) * _MIX
    return (bands >> np.uint64(32)).astype(np.uint32)


@dataclass(frozen=True)
class Groups:
    """`root[i]` is the first text of the group that text i belongs to: its own number if it is like no other.

    Groups are chains: each text is like some other text of its group, not like all.
    """

    root: NDArray[np.int64]

    @property
    def repeated(self) -> int:
        """Texts that are like an earlier one."""
        return int((self.root != np.arange(len(self.root))).sum())


def near_duplicates(sketches: NDArray[np.uint32], words_of: Callable[[int], Sequence[str]]) -> Groups:
    """Groups of texts that are ALIKE.

    Texts that meet in all bands are alike without being compared: at a similarity of 0.8 that has probability 2e-10.

    Args:
        sketches: [N, BANDS] of all texts.
        words_of: the words of text i, read anew to compare candidates.
    """
    whole = np.zeros(len(sketches), dtype=np.uint64)
    for band in range(BANDS):
        whole = (whole + sketches[:, band]) * _MIX
    _, first, number = np.unique(whole, return_index=True, return_inverse=True)
    root: NDArray[np.int64] = first[number]
    distinct = np.sort(first)

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = int(root[i])
        return i

    for band in range(BANDS):
        for bucket in _buckets(sketches[distinct, band]):
            texts = distinct[bucket].tolist()
            if len({find(text) for text in texts}) == 1:
                continue
            compared: dict[int, set[tuple[str, str]]] = {}  # empty until the words are needed
            for text in texts:
                for other in compared:
                    # two that met in an earlier band were compared there
                    if find(other) == find(text) or np.argmax(sketches[text] == sketches[other]) != band:
                        continue
                    one, two = (compared.get(i) or _pairs(words_of(i)) for i in (other, text))
                    compared[other] = one
                    if len(one & two) >= ALIKE * len(one | two):
                        low, high = sorted((find(other), find(text)))
                        root[high] = low
                if len(compared) < MOST_COMPARED:
                    compared[text] = set()
    for i in range(len(root)):
        root[i] = find(i)
    return Groups(root)


def _buckets(keys: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """Indices of equal keys, in order, where there are several."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order], append=~keys[order[-1:]])) + 1
    starts = np.concatenate(([0], ends[:-1]))
    for several in np.flatnonzero(ends - starts > 1):
        yield order[starts[several] : ends[several]]
