"""Few-shot draws against published subsets, and the cut into base and new classes."""

import hashlib
import random

import pytest

from dassl.data import few_shot, subsample_classes
from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UserError

# Class sizes in order of first appearance (34x2 is 34 34), then, for seeds 1, 2 and 3, the first 16 digits
# of the SHA-256 of the comma-joined indices of 16 training and 4 validation images a class.
VECTORS = """
Caltech101
  train 218 100 399 28 400 21x2 24 27 23 16 64 49 22 42 46 25 22 62 24 30 31 54 24 34 36 35 25 26 28 34 26
    32 34 38 32 26 32 42 34x2 22 17x2 26 50x2 21 27 44 40 16 32 43 57 30 40 39 20 33 22 20 44 16 38 28 18
    20 24 19 22 26 17 28 41 30 24 20 32 20 42 28 18 32 22 43 30 32 18 42 24 43 38 120 18 30 17 28 20 30
  val 87 40 160 11 160 8x2 9 11 9 7 26 20 9 17 18 10 9 25 9 12x2 21 9 14 15 14 10x2 11 13 10 13 14 15 13
    11 13 17 13x2 9 7x2 10 20x2 8 11 18 16 6 13 17 23 12 16x2 8 13 9 8 17 6 15 11 7 8 9 8 9 11 7 11 16 12
    10 8 13 8 17 11 7 13 9 17 12 13 7 17 10 17 15 48 7 12 7 11 8 12
  seed a0062a72cfd8d8e5 6f9bb07fa5b50bba
  seed 7280b689bf701855 10ba07f2ce58e766
  seed 44ff4b01d867c890 93fe0be01dbc1a05
OxfordPets
  train 80x7 77 80x3 74 77 80x9 77 80x9 79 80x4
  val 20x7 19 20x3 19x2 20x9 19 20x14
  seed abf213c9341676e3 10395826946e8cde
  seed 81b5ccc705cd8904 76db13e619a73328
  seed c19832450d80ddde 4f0437043a36c3cc
StanfordCars
  train 34x2 31 27 34 36 35 33 38 35 30 31 34 35 34 35 36 34 30 39 33 34 35 37 33 34x7 33 34 35 26 33 37
    54 32 35x2 28 36 34 36x3 33 31 36 34x2 35 36 33 34 32 33 34x2 35x2 36 34 37 34 30 35 37 36 32 25 37 34
    31 28 34 35 37 34 32 36 35 33 36 38 36 33 38 19 32 37 34 38 31 30 34x2 35 28 34x2 33 36x2 31 36 35 29
    33 30 32 34 32 35x2 31 34 26 33 34 33 36 35 30 31 32 30 35 36 34 36 26 32 22 27 34 35 31 27 31 34 36
    34 35 32 30 32 35 31 27 33 31 35x2 31 33 23 35 37 30 33 30 34 33 31 34x2 36 30 34x5 29 35 24 34 32 31
    36 29 36 37 36 34 29 33 30 26 29 37 33 30
  val 9x2 8 7 8 9x2 8 10 9 8x3 9 8 9x3 8 10 8 9x3 8 9x4 8x2 9 8x2 9 7 8 9 14 8 9x2 7 9x5 8x2 9x2 8 9x2 8x4
    9 8 9x6 8 9x3 8 6 9x2 8 7 9x3 8x2 9x2 8 9 10 9 8 9 5 8 9 8 9 8 7 9 8 9 7 8 9 8 9x2 8 9x2 7 8 7 8x3 9x2
    8x2 7 8 9 8 9x2 7 8x3 9x4 7 8 6 7 8 9 8 7 8x2 9 8 9 8x3 9 8 7 8x2 9x2 8x2 6 9x2 7 8x2 9 8x2 9x3 7 9 8
    9 8 9 7 9 6 8x3 9 7 9x3 8 7 8 7 6 7 9 8x2
  seed 0f7c12a6ecd1405b c60965649d26558f
  seed 1d8ef97ef4c069b9 dbd758571654e723
  seed 65b57c7ee4692300 79747b21e9435bcf
OxfordFlowers
  train 126 97 77 92 83 98 86 129 46 56 66 68 52 60 64 65 54 43 57 54 29 54 33 44 51 42 46 42 48 46 54 42
    44 39 42 41 38 41 39 34 36x2 32 38 28 34x2 30 32 33 31 30x2 32 30 22 28 30 24 28 27x3 23 24 26 24x2 25
    46 24 23x2 20x7 21 20 26 20 22 20 21 22 20 22 20 34 28 81 64 46 33 41 32 24 29 24
  val 50 39 31 37 33 39 34 52 19 22 26 27 21 24 25 26 21 17 23 22 12 22 13 17 20 17 18 17 19x2 22 17x2 16
    17 16 15 16x2 13 14x2 13 15 11 13x2 12 13x2 12x3 13 12 9 11 12 10 11x4 9 10x5 18 10 9x2 8x9 10 8 9 8x2
    9 8 9 8 13 11 32 26 18 13 16 13 10 12 10
  seed 86031d577f7b4330 51897c7b9fcde8d2
  seed 3069068fb36a8edc a486e4d9ea7127ea
  seed ee1a25eb035a9fb5 bedbd09a70ab1060
DescribableTextures
  train 60x47
  val 24x47
  seed 6aa4d669856a3f3b 884be17ce4087a26
  seed 68595428c5c9a568 ee5bdff8013a572b
  seed 1a91bd3b5e6f50d8 43114ad34354d4c0
EuroSAT
  train 1500x3 1250x2 1000 1250 1500 1250 1500
  val 600x3 500x2 400 500 600 500 600
  seed d0eded86733d4201 ee2120ce82344d7d
  seed 8cdddbc39a1af0d4 5997ed4727c8cf59
  seed 05ff8da9bfd82a50 a7952bb2f6b3c8e1
UCF101
  train 81 66 83 78 62 90 86 79 75 90 77 88 74 61 66 90 91 78 58 76 63 79 82 94 62 84 93 62 69 71x2 80x2
    78 86 84 80 62 85 69 71 92 73 90 69 65 69 85 84 71 74 72 74 73 61 78 62 64 96 88 92 86 94 62 90 64 58
    87 70 58 97 58 66 82 68 81 72 94 78 70 76 58 63 86 77 64 66 74 71 81 58 94 74 70 74 61 65 70 76 86 74
  val 20 16 21 19 15 22 21 20 19 22 19 22 19 15 16 22 23 19 15 19 16 20 21 24 15 21 23 15 17 18x2 20x2 19
    21x2 20 15 21 17 18 23 18 22 17 16 17 21x2 18x5 15 19 15 16 24 22 23 21 23 15 23 16 14 22 18 14 24 14
    17 21 17 20 18 24 20 18 19 14 16 22 19 16x2 19 18 20 14 23 18 17 19 15 16 17 19 21 18
  seed 554218dbadbcf90c fbe9389ce2d4c482
  seed 9004608e8d74e1e9 4f168308fb2060c9
  seed c2c135ef27705484 cb19d4e1a1be2fc0
FGVCAircraft
  train 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34
    33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2
    34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34
  val 33 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2
    34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34
    33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2 34 33x2
  seed 41ede4349cbc8641 d8ad66553f2364ab
  seed 81a270db0caafa0f fc089d6e55c4f842
  seed b965df55fc5e09d9 29b745bf97332b76
Food101
  train 500x101
  val 200x101
  seed cefcf523a76efd9e 892fda665784a827
  seed 5b5b486ec8c0cbbf 3945531b0320242c
  seed 0f534b4082576f57 af55490c414475f5
SUN397
  train 40x397
  val 10x397
  seed 79b0e313e24aac07 ebf342dea4b7edb8
  seed 1c63049ba3d7b2f9 877994df0089e46e
  seed 16fc485aeacb8397 99fb12f9d945ae58
"""


def parse_vectors():
    vectors, part = [], ""
    for block in VECTORS.strip().split("\n"):
        words = block.split()
        if not block.startswith(" "):
            vectors.append({"name": words[0], "train": [], "val": [], "seeds": []})
        elif words[0] == "seed":
            vectors[-1]["seeds"].append(tuple(words[1:]))
        else:
            if words[0] in ("train", "val"):
                part = words.pop(0)  # else the line before goes on
            for word in words:
                size, _, times = word.partition("x")
                vectors[-1][part] += [int(size)] * int(times or 1)
    return vectors


def items(labels):
    return [Datum.listed(f"{i}.jpg", label, classname=f"class {label}") for i, label in enumerate(labels)]


def numbers(data):
    return [int(item.impath.removesuffix(".jpg")) for item in data]


def by_size(sizes):
    return items([label for label, size in enumerate(sizes) for _ in range(size)])


def short_hash(data):
    return hashlib.sha256(",".join(map(str, numbers(data))).encode()).hexdigest()[:16]


def sixty(keep=range(60)):
    """60 items in 4 classes: label = number mod 4."""
    return [Datum.listed(f"{i}.jpg", i % 4, classname=f"class {i % 4}") for i in keep]


@pytest.mark.parametrize("vector", parse_vectors(), ids=lambda vector: vector["name"])
def test_published_draws(vector):
    train, val = by_size(vector["train"]), by_size(vector["val"])
    assert len(vector["seeds"]) == 3
    for seed, expected in enumerate(vector["seeds"], start=1):
        rng = random.Random(seed)
        drawn = few_shot(train, 16, rng), few_shot(val, 4, rng)
        assert tuple(map(short_hash, drawn)) == expected


def test_food101_begins_as_published():
    rng = random.Random(1)
    train, val = ([Datum.listed(str(i), i // each) for i in range(101 * each)] for each in (500, 200))
    assert [item.impath for item in few_shot(train, 16, rng)[:4]] == ["68", "291", "433", "410"]
    assert [item.impath for item in few_shot(val, 4, rng)[:4]] == ["110", "5", "151", "94"]


@pytest.mark.parametrize(
    ("seed", "shots", "expected"),
    [
        (1, 2, [8, 36, 53, 49, 50, 6, 19, 7]),
        (1, 4, [8, 36, 48, 4, 17, 5, 29, 49, 30, 42, 26, 14, 7, 31, 3, 27]),
        (2, 1, [52, 53, 2, 7]),
        (2, 16, [i for label in range(4) for i in range(label, 60, 4)]),
    ],
)
def test_dassl_draws_from_the_global_stream(seed, shots, expected):
    random.seed(seed)
    assert numbers(DatasetBase.generate_fewshot_dataset(None, sixty(), num_shots=shots)) == expected


def test_a_class_that_is_short_costs_no_draw():
    random.seed(2)
    state = random.getstate()
    DatasetBase.generate_fewshot_dataset(None, sixty(), num_shots=16)
    assert random.getstate() == state


def test_two_sources_share_the_stream():
    random.seed(1)
    drawn = DatasetBase.generate_fewshot_dataset(None, sixty(range(40)), sixty(range(40, 60)), num_shots=2)
    assert [numbers(part) for part in drawn] == [
        [8, 4, 17, 5, 30, 38, 31, 27],
        [44, 40, 53, 41, 54, 58, 59, 43],
    ]


def test_classes_are_drawn_in_order_of_first_appearance():
    random.seed(1)
    descending = sorted(sixty(), key=lambda item: -item.label)
    assert numbers(DatasetBase.generate_fewshot_dataset(None, descending, num_shots=1)) == [11, 38, 53, 48]


def test_no_shots_returns_what_was_given():
    one, two = sixty(), sixty(range(8))
    assert DatasetBase.generate_fewshot_dataset(None, one, num_shots=-1) is one
    assert DatasetBase.generate_fewshot_dataset(None, one, two) == (one, two)
    assert numbers(few_shot(one, 0)) == list(range(60))


def test_repeat_fills_a_short_class_with_replacement():
    drawn = DatasetBase.generate_fewshot_dataset(None, sixty(range(8)), num_shots=5, repeat=True)
    assert [item.label for item in drawn] == [label for label in range(4) for _ in range(5)]
    assert all(number % 4 == item.label for number, item in zip(numbers(drawn), drawn, strict=True))


def test_refusal_names_class_count_and_shots():
    data = by_size([20, 3, 20, 5])
    with pytest.raises(UserError, match=r"16 shots .* 2 of 4 classes .*class 1 \(3\), class 3 \(5\)\. At most 3"):
        few_shot(data, 16, random.Random(1), short="refuse")
    assert len(few_shot(data, 3, random.Random(1), short="refuse")) == 12


def test_base_gets_the_odd_class_and_labels_start_at_zero():
    train = items([7, 2, 2, 9, 4, 11])  # five labels: 2 4 7 | 9 11
    test = items([11, 9, 7, 4, 2, 2])
    base = subsample_classes(train, test, subset="base")
    new = subsample_classes(train, test, subset="new")
    assert [[(i, item.label) for i, item in zip(numbers(part), part, strict=True)] for part in base] == [
        [(0, 2), (1, 0), (2, 0), (4, 1)],
        [(2, 2), (3, 1), (4, 0), (5, 0)],
    ]
    assert [[(item.label, item.classname) for item in part] for part in new] == [
        [(0, "class 9"), (1, "class 11")],
        [(1, "class 11"), (0, "class 9")],
    ]
    assert [item.label for item in train] == [7, 2, 2, 9, 4, 11]  # the given items keep their labels


def test_all_leaves_the_lists_alone_and_other_words_are_refused():
    train = items([1, 0])
    assert subsample_classes(train, subset="all") is train
    with pytest.raises(UserError, match="all, base, new.*'novel'"):
        subsample_classes(train, subset="novel")
    with pytest.raises(UserError, match="SUBSAMPLE_CLASSES new: there are 1 classes, this half has none"):
        subsample_classes([item for item in train if item.label == train[0].label], subset="new")
