"""The plan of a training, the order of its rows, what each process does, and the two optimizers that take turns."""

import copy
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign.meta_aligner.buffers import Answer, Buffer, shares
from hf_lifealign.meta_aligner.optimizer import POLICY, WEIGHTS, PairedOptimizer, PairedSchedule
from hf_lifealign.meta_aligner.preferences import RewardStatistics
from hf_lifealign.meta_aligner.schedule import INNER, OUTER, PRETRAIN, Schedule, epoch_order

PLANS = st.builds(
    Schedule,
    rows_per_update=st.integers(1, 5),
    offline_rows=st.integers(0, 7),
    pretrain_epochs=st.integers(0, 3),
    rounds=st.integers(0, 3),
    kept_rows=st.integers(1, 8),
    epochs=st.integers(1, 3),
    outer=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(PLANS)
def test_every_row_of_every_epoch_has_its_turn(plan: Schedule) -> None:
    places = [plan.place(number) for number in range(plan.rows)]
    expected: Counter[Any] = Counter()
    for epoch in range(plan.pretrain_epochs):
        expected.update((PRETRAIN, 0, epoch, row) for row in range(_filled(plan.offline_rows, plan)))
    for round in range(1, plan.rounds + 1):
        for epoch in range(plan.epochs):
            for kind in (INNER, OUTER) if plan.outer else (INNER,):
                expected.update((kind, round, epoch, row) for row in range(_filled(plan.kept_rows, plan)))
    assert Counter((p.kind, p.round, p.epoch, p.row) for p in places) == expected


def _filled(rows: int, plan: Schedule) -> int:
    return math.ceil(rows / plan.rows_per_update) * plan.rows_per_update


@settings(max_examples=80, deadline=None)
@given(PLANS)
def test_an_update_is_of_one_kind_and_outer_steps_see_the_rows_of_their_inner_step(plan: Schedule) -> None:
    size = plan.rows_per_update
    updates = [[plan.place(u * size + i) for i in range(size)] for u in range(plan.updates)]
    assert all(len({(p.kind, p.round, p.epoch) for p in update}) == 1 for update in updates)
    for before, update in pairwise(updates):
        if update[0].kind == OUTER:
            assert [(p.round, p.epoch, p.row) for p in before] == [(p.round, p.epoch, p.row) for p in update]
            assert before[0].kind == INNER
        assert before[0].round <= update[0].round
    kinds = Counter(update[0].kind for update in updates)
    assert kinds[INNER] == plan.inner_updates()
    assert kinds[OUTER] == (plan.inner_updates() if plan.outer else 0)
    assert kinds[PRETRAIN] == plan.pretrain_updates


def test_orders_are_permutations_that_differ_by_epoch_round_and_seed() -> None:
    first = epoch_order(50, 1, 1, 0)
    assert sorted(first) == list(range(50))
    assert first == epoch_order(50, 1, 1, 0)
    others = [epoch_order(50, 1, 1, 1), epoch_order(50, 1, 2, 0), epoch_order(50, 2, 1, 0)]
    assert len({tuple(order) for order in [first, *others]}) == 4


def test_a_buffer_visits_what_it_kept_and_fills_up_from_the_same_epoch() -> None:
    rewards = [[1.0, 0.0], [math.nan, 1.0], [0.0, 1.0], [2.0, 2.0]]
    answers = [Answer(i, [1], [2], r, [0.5, 0.5]) for i, r in enumerate(rewards)]
    buffer = Buffer.of(answers, RewardStatistics(torch.zeros(2), torch.ones(2)), tau=0.5)
    assert buffer.kept == [0, 2, 3]
    rows = [buffer.row(position, 3, 1, 0) for position in range(4)]
    assert sorted(rows[:3]) == [0, 2, 3]
    assert rows[3] == rows[0]
    orders = {tuple(buffer.row(position, 3, 1, epoch) for position in range(3)) for epoch in range(12)}
    assert len(orders) > 1
    torch.testing.assert_close(buffer.targets[3], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(buffer.targets[0], torch.softmax(torch.tensor([2.0, 0.0]), -1))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_even_and_whole(items: int, batch: int, processes: int) -> None:
    plans = [shares(items, batch, processes, rank) for rank in range(processes)]
    assert len({len(plan) for plan in plans}) == 1
    done: list[int] = []
    for plan in plans:
        for indices, own in plan:
            assert len(indices) <= batch
            assert all(0 <= index < items for index in indices)
            done += indices[:own]
    assert sorted(done) == list(range(items))
    # they work in step: in each turn all have as much to do
    for turn in zip(*plans, strict=True):
        assert len({len(indices) for indices, _ in turn}) == 1


def pair(rates: tuple[float, float] = (0.1, 0.2)) -> tuple[PairedOptimizer, torch.nn.Parameter, torch.nn.Parameter]:
    theta, psi = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    return PairedOptimizer(torch.optim.AdamW([theta], lr=rates[0]), torch.optim.AdamW([psi], lr=rates[1])), theta, psi


def test_a_step_moves_the_active_side_alone() -> None:
    optimizer, theta, psi = pair()
    for side, moved, still in ((POLICY, theta, psi), (WEIGHTS, psi, theta)):
        before = moved.detach().clone(), still.detach().clone()
        optimizer.active = (side,)
        moved.grad, still.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
        assert not torch.equal(moved, before[0])
        assert torch.equal(still, before[1])
        optimizer.zero_grad()
        assert moved.grad is None
        assert still.grad is None
    assert optimizer.parameters(WEIGHTS, POLICY) == [psi, theta]


def test_a_new_phase_begins_with_empty_moments_once() -> None:
    optimizer, theta, psi = pair()
    theta.grad, psi.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    optimizer.begin("pretrain")
    assert all(optimizer.pair[side].state for side in optimizer.pair)
    optimizer.begin("meta")
    assert not any(optimizer.pair[side].state for side in optimizer.pair)
    theta.grad = torch.ones(2)
    optimizer.step()
    optimizer.begin("meta")
    assert optimizer.pair[POLICY].state[theta]["step"] == 1


def test_the_state_of_both_optimizers_survives_a_round_trip() -> None:
    def walk(optimizer: PairedOptimizer, theta: Any, psi: Any, steps: int) -> None:
        for step in range(steps):
            theta.grad, psi.grad = torch.full((2,), 1.0 + step), torch.full((2,), -2.0 - step)
            optimizer.step()

    whole, theta, psi = pair()
    whole.begin("meta")
    walk(whole, theta, psi, 3)
    state = copy.deepcopy(whole.state_dict())
    other, theta2, psi2 = pair((9.0, 9.0))
    other.load_state_dict(state)
    with torch.no_grad():
        theta2.copy_(theta)
        psi2.copy_(psi)
    walk(whole, theta, psi, 2)
    walk(other, theta2, psi2, 2)
    assert torch.equal(theta, theta2)
    assert torch.equal(psi, psi2)
    assert other.phase == "meta"
    # the groups that a trainer sees are those of the optimizers, also after loading
    assert [id(group) for group in other.param_groups] == [
        id(group) for side in other.pair for group in other.pair[side].param_groups
    ]


def curve(kind: str, step: int, steps: int, ramp: int) -> float:
    """transformers' schedules in closed form."""
    if step < ramp:
        return step / max(1, ramp)
    if kind == "linear":
        return max(0.0, (steps - step) / max(1, steps - ramp))
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))
    return 1.0


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("pretrain_rate", [0.5, 0.0], ids=["both", "meta_only"])
def test_each_side_has_the_curve_of_its_phase(kind: str, pretrain_rate: float) -> None:
    phases = [(6, pretrain_rate), (4, 0.02)]
    optimizer, _, _ = pair()
    schedule = PairedSchedule(optimizer, kind, {POLICY: [phases], WEIGHTS: [[(6, 0.3), (4, 0.04)]]}, warmup=0.5)
    ramps = (3, 2) if kind != "constant" else (0, 0)
    optimizer.active = (POLICY,)
    seen = []
    for _ in range(10):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        # the other side has not moved
        assert schedule.pair[WEIGHTS].last_epoch == 0
    expected = [curve(kind, i, 6, ramps[0]) * pretrain_rate for i in range(6)]
    expected += [curve(kind, i, 4, ramps[1]) * 0.02 for i in range(4)]
    assert seen == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_side_without_a_first_phase_begins_with_its_second() -> None:
    optimizer, _, _ = pair()
    phases = {POLICY: [[(0, 0.5), (4, 0.02)]], WEIGHTS: [[(0, 0.5), (4, 0.0)]]}
    schedule = PairedSchedule(optimizer, "linear", phases)
    assert schedule.get_last_lr() == [0.02, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.0]


def test_a_schedule_goes_on_from_its_state() -> None:
    phases = {POLICY: [[(3, 0.5), (4, 0.02)]], WEIGHTS: [[(3, 0.3), (4, 0.04)]]}
    optimizer, _, _ = pair()
    schedule = PairedSchedule(optimizer, "linear", phases)
    for side in (POLICY, POLICY, WEIGHTS, POLICY, POLICY):
        optimizer.active = (side,)
        optimizer.step()
        schedule.step()
    other, _, _ = pair()
    resumed = PairedSchedule(other, "linear", phases)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.get_last_lr() == schedule.get_last_lr()
    for side in (WEIGHTS, POLICY, WEIGHTS, POLICY, WEIGHTS):
        for one, its in ((optimizer, schedule), (other, resumed)):
            one.active = (side,)
            one.step()
            its.step()
        assert resumed.get_last_lr() == schedule.get_last_lr()
        assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_each_group_of_a_side_has_a_curve_of_its_own() -> None:
    theta, psi, encoder = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    weights = torch.optim.AdamW([{"params": [psi]}, {"params": [encoder]}])
    optimizer = PairedOptimizer(torch.optim.AdamW([theta]), weights)
    phases = {POLICY: [[(1, 0.5), (1, 0.5)]], WEIGHTS: [[(1, 0.3), (1, 0.03)], [(1, 0.01), (1, 0.01)]]}
    schedule = PairedSchedule(optimizer, "constant", phases)
    assert schedule.get_last_lr() == [0.5, 0.3, 0.01]
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.5, 0.03, 0.01]


def test_schedules_that_watch_a_metric_are_refused() -> None:
    optimizer, _, _ = pair()
    with pytest.raises(ValueError, match="reduce_lr_on_plateau"):
        PairedSchedule(optimizer, "reduce_lr_on_plateau", {POLICY: [[(1, 1.0)]], WEIGHTS: [[(1, 1.0)]]})
