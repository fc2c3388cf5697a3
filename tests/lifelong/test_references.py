"""The store of reference log-probabilities: by content, checked, shared."""

import logging
from pathlib import Path

import pytest

from hf_lifealign.lifelong.references import ReferenceStore, pair_key
from hf_lifealign.packing import EncodedPair

A, B, C = (EncodedPair([1, n], [1, n, 9], 1, 1) for n in (5, 6, 7))
WORDS = ("base", "float32", "None")


class Counted:
    """Values that tell how often they were computed."""

    def __init__(self, *pairs: EncodedPair) -> None:
        self.pairs, self.calls = pairs, 0

    def __call__(self) -> list[tuple[float, float]]:
        self.calls += 1
        return [(-float(pair.chosen[1]) - self.calls / 64, -1.5) for pair in self.pairs]


def test_what_was_computed_once_is_found_by_any_set_of_its_pairs(tmp_path: Path) -> None:
    compute = Counted(A, B)
    first = ReferenceStore(tmp_path, True).get([A, B], WORDS, compute)
    again = ReferenceStore(tmp_path, True)
    assert again.get([B, A, B], WORDS, Counted()) == [first[1], first[0], first[1]]
    assert compute.calls == 1


def test_runs_that_share_a_folder_keep_what_the_others_found(tmp_path: Path) -> None:
    one, other = ReferenceStore(tmp_path, True), ReferenceStore(tmp_path, True)
    one.get([A], WORDS, Counted(A))
    told = other.get([B, B], WORDS, Counted(B, B))
    one.get([C], WORDS, Counted(C))  # it knows nothing of B
    assert ReferenceStore(tmp_path, True).get([A, B, C, B], WORDS, Counted())[1] == told[0] == told[1]


def test_another_way_of_computing_is_another_value(tmp_path: Path) -> None:
    store, compute = ReferenceStore(tmp_path, True), Counted(A)
    for words in (WORDS, ("base", "bfloat16", "None"), ("other", "float32", "None"), (*WORDS, "0.5")):
        store.get([A], words, compute)
    assert compute.calls == 4
    assert pair_key(A) != pair_key(EncodedPair(A.chosen, A.rejected, 0, 1)), "where a completion begins counts"


def test_a_pair_keeps_its_first_value(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, True)
    (first,) = store.get([A], WORDS, Counted(A))
    late = Counted(A, C)
    late.calls = 3
    found = store.get([A, C], WORDS, late)
    assert found[0] == first
    assert ReferenceStore(tmp_path, True).get([A, C], WORDS, Counted()) == found


@pytest.mark.parametrize("damage", ["number", "cut", "bytes", "form"])
def test_what_is_damaged_is_computed_again_and_that_is_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ReferenceStore(tmp_path, True).get([A, B], WORDS, Counted(A, B))
    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_bytes()
    first, second = whole.splitlines()
    file.write_bytes(
        {"number": whole.replace(b"-1.5", b"-1.25", 1), "cut": first + b"\n" + second[:30],
         "bytes": first + b"\n\xff\xfe\x00\n", "form": first + b'\n{"a": 1}\n'}[damage]
    )  # fmt: skip
    compute = Counted(A, B)
    compute.calls = 0
    with caplog.at_level(logging.WARNING):
        found = ReferenceStore(tmp_path, True).get([A, B], WORDS, compute)
    assert compute.calls == 1
    assert "damaged" in caplog.text
    assert found == Counted(A, B)()
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
