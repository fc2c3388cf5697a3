"""Blocks and masks against what they stand for: sequences that know nothing of each other."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.packing import EncodedPair, attention_mask, lay_out, sees
from hf_lifealign.packing.rows import cheapest_rows

TOKENS = st.lists(st.integers(3, 40), max_size=6)


@st.composite
def pairs(draw: st.DrawFn) -> EncodedPair:
    """Prompts of any length, also none, also cut differently on both sides; completions of any length, also none."""
    prompt, chosen, rejected = draw(TOKENS), draw(TOKENS), draw(TOKENS)
    cuts = draw(st.sampled_from([(0, 0), (0, 0), (1, 2), (3, 0)]))
    fronts = [prompt[min(cut, len(prompt)) :] for cut in cuts]
    return EncodedPair(fronts[0] + chosen, fronts[1] + rejected, len(fronts[0]), len(fronts[1]))


def one_row(lengths: list[int]) -> list[list[int]]:
    return [list(range(len(lengths)))]


def narrow(lengths: list[int]) -> list[list[int]]:
    return cheapest_rows(lengths, even=20.0)


CHOICES = st.sampled_from([one_row, narrow])


@given(st.lists(pairs(), min_size=1, max_size=5), CHOICES)
def test_every_scored_token_sees_its_own_sequence_and_nothing_else(given_pairs: list[EncodedPair], choose) -> None:
    rows = lay_out(given_pairs, choose)
    seen = sees(rows)
    width = rows.input_ids.shape[1]
    sequences = [p.chosen for p in given_pairs] + [p.rejected for p in given_pairs]
    starts = [p.chosen_start for p in given_pairs] + [p.rejected_start for p in given_pairs]
    for source, target, side, step in zip(
        rows.sources.tolist(), rows.targets.tolist(), rows.sides.tolist(), rows.steps.tolist(), strict=True
    ):
        row, place = divmod(source, width)
        held = seen[row, place].nonzero().flatten()
        # what it sees is its sequence up to the token before it, in order and in place
        assert rows.input_ids[row, held].tolist() == sequences[side][:step]
        assert rows.positions[row, held].tolist() == list(range(step))
        assert target == sequences[side][step]
    expected = {
        (side, step) for side, tokens in enumerate(sequences) for step in range(max(1, starts[side]), len(tokens))
    }
    assert set(zip(rows.sides.tolist(), rows.steps.tolist(), strict=True)) == expected
    assert len(rows.sides) == len(expected)


@given(st.lists(pairs(), min_size=1, max_size=4), CHOICES)
def test_no_token_sees_nothing_and_none_is_computed_twice(given_pairs: list[EncodedPair], choose) -> None:
    rows = lay_out(given_pairs, choose)
    assert sees(rows).any(dim=-1).all()
    for i, pair in enumerate(given_pairs):
        held = int((rows.blocks == i).sum())
        sides = ((len(pair.chosen), pair.chosen_start), (len(pair.rejected), pair.rejected_start))
        scored = [length for length, start in sides if max(start, 1) < length]
        assert held == (pair.shared + sum(n - 1 - pair.shared for n in scored) if scored else 0)


def test_a_known_block() -> None:
    rows = lay_out([EncodedPair([5, 6, 7, 8], [5, 6, 9], 2, 2)], one_row)
    assert rows.input_ids.tolist() == [[5, 6, 7]], "the last token of a completion predicts nothing"
    assert rows.positions.tolist() == [[0, 1, 2]]
    assert rows.branches.tolist() == [[0, 0, 1]]
    assert rows.sources.tolist() == [1, 2, 1]
    assert rows.targets.tolist() == [7, 8, 9]
    assert rows.sides.tolist() == [0, 0, 1]
    assert rows.steps.tolist() == [2, 3, 2]


def test_the_forms_of_the_mask_say_the_same() -> None:
    given_pairs = [EncodedPair([3, 4, 5, 6], [3, 4, 7, 8, 9], 2, 2), EncodedPair([9, 8, 7], [9, 6], 1, 1)]
    rows = lay_out(given_pairs, narrow)
    dense = sees(rows)
    assert torch.equal(attention_mask(rows, "sdpa", torch.float32)[:, 0], dense)
    added = attention_mask(rows, "eager", torch.float32)[:, 0]
    assert torch.equal(added == 0, dense)
    assert bool((added[~dense] == torch.finfo(torch.float32).min).all())
    flex = attention_mask(rows, "flex_attention", torch.float32)
    count, width = rows.blocks.shape
    at = torch.meshgrid(torch.arange(count), torch.arange(width), torch.arange(width), indexing="ij")
    assert torch.equal(flex.mask_mod(at[0], torch.zeros((), dtype=torch.long), at[1], at[2]), dense)
