"""Near-duplicates: against every pair compared, and on texts made for it."""

import itertools
import random
import re

import numpy as np
import pytest

from chatsmith.data.duplicates import ALIKE, BANDS, near_duplicates, similarity, sketch, words


def groups(texts):
    said = [words(text) for text in texts]
    return near_duplicates(sketch(said), said.__getitem__).root.tolist()


def every_pair(texts):
    """The same by comparing all pairs, with sets of strings made by other means."""
    shingles = []
    for text in texts:
        units = re.findall(r"[a-z0-9]+|[一-鿿]", text.lower()) or [text]
        shingles.append({f"{a}|{b}" for a, b in itertools.pairwise([*units, "."])})
    root = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if len(shingles[i] & shingles[j]) >= ALIKE * len(shingles[i] | shingles[j]):
            old, new = root[j], root[i]
            root = [min(old, new) if r in (old, new) else r for r in root]
    return root


def variations(seed, alphabet, join):
    """Texts of which many differ in a word or two: just above and just below the bound."""
    rng = random.Random(seed)
    texts = []
    for _ in range(60):
        base = [rng.choice(alphabet) for _ in range(rng.randint(1, 60))]
        texts.append(join.join(base))
        for changes in range(rng.randint(0, 5)):
            copy = list(base)
            for _ in range(changes):
                copy[rng.randrange(len(copy))] = rng.choice(alphabet)
            texts.append(join.join(copy))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize(
    ("alphabet", "join"), [([f"w{i}" for i in range(200)], " "), ([chr(0x4E00 + i) for i in range(300)], "")]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_groups_are_those_of_comparing_every_pair(seed, alphabet, join):
    texts = variations(seed, alphabet, join)
    found, expected = groups(texts), every_pair(texts)
    assert found == expected
    repeated = sum(root != i for i, root in enumerate(expected))
    assert 50 < repeated < len(texts) - 20  # so that both answers are given often


def test_similarity_by_hand():
    # pairs of "a b c d": ab bc cd d.   of "a b c e": ab bc ce e.   2 of 6 are shared
    assert similarity(words("a b c d"), words("a b c e")) == pytest.approx(2 / 6)
    assert similarity(words("你好吗"), words("你好")) == pytest.approx(1 / 4)  # 你好 好吗 吗.  and  你好 好.
    assert similarity(words("Name a fruit."), words("name  a FRUIT")) == 1.0


def test_words_are_words_and_characters_where_there_are_no_spaces():
    assert words("Don't Stop, 42!") == ["don", "t", "stop", "42"]
    assert words("用Python写 程序") == ["用", "python", "写", "程", "序"]
    assert words("東京タワー 한국어 문장") == [*"東京タワ", "ー", "한국어", "문장"]
    assert words("ｆｕｌｌ") == ["full"]
    assert words("?!") == ["?!"]


def test_made_near_duplicates_are_found_and_others_are_not():
    base = (
        "please write a short story about a lonely lighthouse keeper who finds an old letter in a bottle on the beach"
    )
    texts = [
        base,
        base.upper() + "!!",
        base.replace("beach", "shore"),
        "please write a short story about a lonely lighthouse",
        "how do I sort a list of numbers in Python",
        "what is the capital of France",
        "What is the capital of France?",
        "what is the capital of Spain",
    ]
    assert groups(texts) == [0, 0, 0, 3, 4, 5, 5, 7]


def test_chains_hold_together_and_the_first_text_names_the_group():
    base = [f"w{i}" for i in range(40)]
    steps = [" ".join(["x"] * n + base[n:]) for n in range(12)]
    assert similarity(words(steps[0]), words(steps[11])) < ALIKE <= similarity(words(steps[0]), words(steps[1]))
    assert groups(steps[::-1]) == [0] * 12


def test_two_texts_meet_in_a_band_as_often_as_the_formula_says():
    rng = random.Random(0)
    met, trials, same = 0, 200, 0.0
    for _ in range(trials):
        base = [str(rng.random()) for _ in range(101)]
        other = base[:96] + [str(rng.random()) for _ in range(5)]
        same += similarity(base, other) / trials
        one, two = sketch([base, other])
        met += int((one == two).sum())
    # per band s**5; the mean of 20 * 200 draws lies within 5 deviations
    expected = same**5
    assert met / (BANDS * trials) == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 4000) ** 0.5)


def test_a_sketch_does_not_depend_on_its_neighbours_and_takes_80_bytes():
    texts = [words(text) for text in variations(3, [f"w{i}" for i in range(50)], " ")]
    together = sketch(texts)
    assert np.array_equal(together, np.concatenate([sketch([text]) for text in texts]))
    assert together.nbytes == 80 * len(texts)
    assert not np.array_equal(together[0], together[1])


def test_many_copies_of_one_text_are_compared_once_each():
    texts = ["the same question again and again"] * 500 + [f"number {i} stands alone here {i * i}" for i in range(500)]
    said = [words(text) for text in texts]
    read = []

    def words_of(i):
        read.append(i)
        return said[i]

    found = near_duplicates(sketch(said), words_of)
    assert found.root.tolist() == [0] * 500 + list(range(500, 1000))
    assert found.repeated == 499
    assert len(read) < 2000


def test_nothing_and_one_text_are_groups_too():
    assert groups(["alone"]) == [0]
    assert groups(["a b c", "d e f"]) == [0, 1]


def test_unlike_texts_are_hardly_ever_read_again():
    rng = random.Random(1)
    texts = [[f"w{rng.randrange(5000)}" for _ in range(80)] for _ in range(1000)]
    read = []

    def words_of(i):
        read.append(i)
        return texts[i]

    assert near_duplicates(sketch(texts), words_of).repeated == 0
    assert len(read) < 10  # of half a million pairs
