"""Forces against exact enumeration: every sequence of a small autoregressive model is counted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy_language import Toy

from hf_lifealign.dynamics.forces import IGNORED, importance_weights, leave_one_out_weights, split_nll
from hf_lifealign.dynamics.rehearsal import reach
from hf_lifealign.dynamics.updates import (
    AdamWSplit,
    coming_rates,
    difference,
    inner_product,
    momentum_of,
    norm,
    scales_of,
    snapshot,
    step_of,
)

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_theorem_is_the_gradient_of_the_score(seed: int) -> None:
    toy = Toy.make(seed)
    theta = toy.parameters(seed)
    gradient = toy.score_gradient(theta)
    change = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = float((gradient * change).sum())
    assert toy.theorem(theta, change) == pytest.approx(exact, abs=1e-12)
    # the sign that the appendix prints is another quantity
    assert abs(toy.theorem(theta, change, sign=1.0) - exact) > 0.1 * abs(exact)


@pytest.mark.parametrize("seed", SEEDS)
def test_forces_agree_with_the_true_change_to_first_order(seed: int) -> None:
    toy = Toy.make(seed)
    theta = toy.parameters(seed)
    gradient = toy.score_gradient(theta)
    drive, rebound = (torch.autograd.grad(part, theta, retain_graph=True)[0] for part in toy.losses(theta))
    errors, wrong = [], []
    for rate in (0.1, 0.01, 0.001):
        change = -rate * (drive + rebound)
        true = float(toy.score(theta.detach() + change) - toy.score(theta.detach()))
        told = inner_product([gradient], [-rate * drive]) + inner_product([gradient], [-rate * rebound])
        errors.append(abs(told - true) / rate)
        wrong.append(abs(toy.theorem(theta, change, sign=1.0) - true) / rate)
    # the error of the change is of second order, so that over the rate it falls tenfold with it
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.7)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.2)
    assert wrong[2] > 20 * errors[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_drive_and_rebound_are_the_whole_force(seed: int) -> None:
    toy = Toy.make(seed)
    theta = toy.parameters(seed)
    drive, rebound = toy.losses(theta)
    plain = -(toy.data * toy.sequence_logps(theta)).sum(-1).mean()
    assert float(drive + rebound) == pytest.approx(float(plain), abs=1e-10)
    parts = [torch.autograd.grad(part, theta, retain_graph=True)[0] for part in (drive, rebound)]
    whole = torch.autograd.grad(plain, theta)[0]
    gradient = toy.score_gradient(theta)
    total = inner_product([gradient], [whole])
    assert inner_product([gradient], [parts[0]]) + inner_product([gradient], [parts[1]]) == pytest.approx(
        total, abs=1e-10
    )


def test_the_lemma_of_a_diagonal_kernel() -> None:
    """One token, logits as parameters: F_reb = -pi+ sum pt+^2 + pi- sum pt-^2, F_drive = <pt+ - pt-, p>."""
    z = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    aligned = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    data = torch.tensor([0.1, 0.5, 0.3, 0.1], dtype=torch.float64)
    pi = torch.softmax(z, 0)
    plus = (pi * aligned).sum()
    gradient = torch.autograd.grad(plus, z, retain_graph=True)[0]
    losses = [split_nll(z.unsqueeze(0), torch.tensor([y])) for y in range(4)]
    forces = [
        -torch.autograd.grad(sum(data[y] * losses[y][k] for y in range(4)), z, retain_graph=True)[0] for k in (0, 1)
    ]
    posterior = [(pi * aligned / plus).detach(), (pi * (1 - aligned) / (1 - plus)).detach()]
    gate = float(plus * (1 - plus))
    expected_rebound = float(-plus * (posterior[0] ** 2).sum() + (1 - plus) * (posterior[1] ** 2).sum())
    expected_drive = float(((posterior[0] - posterior[1]) * data).sum())
    assert inner_product([gradient], [forces[0]]) / gate == pytest.approx(expected_drive, abs=1e-6)
    assert inner_product([gradient], [forces[1]]) / gate == pytest.approx(expected_rebound, abs=1e-6)


def test_rebound_opposes_the_present_state() -> None:
    """Over many starts it pulls a high score down and a low one up."""
    scores, rebounds = [], []
    for seed in range(40):
        toy = Toy.make(seed)
        theta = (2.0 * toy.parameters(seed)).detach().requires_grad_()
        score = float(toy.score(theta))
        rebound = torch.autograd.grad(toy.losses(theta)[1], theta)[0]
        scores.append(score)
        rebounds.append(-inner_product([toy.score_gradient(theta)], [rebound]) / (score * (1 - score)))
    correlation = torch.corrcoef(torch.tensor([scores, rebounds]))[0, 1]
    assert correlation < -0.5


@given(shift=st.floats(-50, 50), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_split_does_not_depend_on_a_shift_of_the_logits(shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (2, 4), generator=generator)
    labels[0, 0] = IGNORED
    plain, shifted = split_nll(logits, labels), split_nll(logits + shift, labels)
    for a, b in zip(plain, shifted, strict=True):
        assert float(a) == pytest.approx(float(b), abs=1e-9)
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert float(sum(plain)) == pytest.approx(float(whole), abs=1e-9)


def test_the_split_has_right_gradients() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([1, IGNORED, 4])
    assert torch.autograd.gradcheck(lambda z: split_nll(z, labels), (logits,))


def test_nothing_learnt_is_no_force() -> None:
    drive, rebound = split_nll(torch.randn(2, 5), torch.full((2,), IGNORED))
    assert float(drive) == float(rebound) == 0.0


# The estimate of grad S


def sampled(toy: Toy, theta: torch.Tensor, n: int, seed: int) -> tuple[torch.Tensor, list[list[float]]]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = toy.sequence_logps(theta).exp().detach()
    rows = torch.multinomial(probabilities, n, replacement=True, generator=generator)
    return rows, toy.labels.gather(1, rows).tolist()


def test_the_sampled_gradient_is_unbiased() -> None:
    toy = Toy.make(3)
    theta = toy.parameters(3)
    exact = toy.score_gradient(theta)
    errors = []
    for count in (500, 50_000):
        rows, labels = sampled(toy, theta, 4 * count, 0)
        # estimates from 4 samples a prompt; their mean is what all of them together give
        fours = [row[4 * k : 4 * k + 4] for row in labels for k in range(count)]
        weights = torch.tensor(leave_one_out_weights(fours), dtype=torch.float64).reshape(rows.shape)
        mean = torch.autograd.grad((weights * toy.sequence_logps(theta).gather(1, rows)).sum(), theta)[0]
        errors.append(norm([mean - exact]) / norm([exact]))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(("n", "least"), [(128, 0.9), (2048, 0.99)])
def test_the_sampled_gradient_tells_the_change(n: int, least: float) -> None:
    """Correlation of estimated and exact first-order change, over random changes of the parameters."""
    toy = Toy.make(3)
    theta = toy.parameters(3)
    exact = toy.score_gradient(theta)
    rows, labels = sampled(toy, theta, n, 1)
    weights = torch.tensor(leave_one_out_weights(labels), dtype=torch.float64)
    told = torch.autograd.grad((weights * toy.sequence_logps(theta).gather(1, rows)).sum(), theta)[0]
    changes = torch.randn(200, *theta.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    pairs = torch.stack([(changes * exact).sum((1, 2)), (changes * told).sum((1, 2))])
    assert float(torch.corrcoef(pairs)[0, 1]) > least


def test_weights_of_an_earlier_model_estimate_the_present_gradient() -> None:
    toy = Toy.make(4)
    before, now = toy.parameters(4), (toy.parameters(4) + 0.2 * toy.parameters(9)).detach().requires_grad_()
    rows, labels = sampled(toy, before, 20000, 2)
    logs = (toy.sequence_logps(now) - toy.sequence_logps(before)).detach().gather(1, rows).tolist()
    exact = toy.score_gradient(now)

    def estimate(weights: list[list[float]]) -> torch.Tensor:
        told = torch.tensor(weights, dtype=torch.float64)
        return torch.autograd.grad((told * toy.sequence_logps(now).gather(1, rows)).sum(), now)[0]

    assert norm([estimate(importance_weights(labels, logs)) - exact]) < 0.05 * norm([exact])
    assert norm([estimate(leave_one_out_weights(labels)) - exact]) > 0.05 * norm([exact]), "weights are needed"


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=6), min_size=1, max_size=5), st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_weights_sum_to_nothing_and_agree(labels: list[list[float]], shift: float) -> None:
    plain = leave_one_out_weights(labels)
    same = importance_weights(labels, [[shift] * len(row) for row in labels])
    for row, other in zip(plain, same, strict=True):
        assert sum(row) == pytest.approx(0, abs=1e-12)
        assert row == pytest.approx(other, abs=1e-9)


def test_a_single_sample_says_nothing() -> None:
    assert leave_one_out_weights([[1.0], [0.0, 1.0]]) == [[0.0], [-0.5, 0.5]]
    assert importance_weights([[1.0], [0.0, 1.0]], [[0.0], [0.0, 0.0]]) == [[0.0], pytest.approx([-0.5, 0.5])]


# Optimizers


def test_adamw_is_split_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(3, 4, generator=generator, dtype=torch.float64),
        torch.randn(5, generator=generator).double(),
    ]
    theta = [p.clone().requires_grad_() for p in parameters]
    optimizer = torch.optim.AdamW(theta, lr=0.1, weight_decay=0.05)
    split = AdamWSplit(parameters, weight_decay=0.05)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = rate = 0.1 / (step + 1)
        parts = [[torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in theta] for _ in range(2)]
        before = [p.detach().clone() for p in theta]
        for k, p in enumerate(theta):
            p.grad = parts[0][k] + parts[1][k]
        changes, decay = split.step(before, parts, rate)
        optimizer.step()
        for k, p in enumerate(theta):
            told = changes[0][k] + changes[1][k] + decay[k]
            assert float((p.detach() - before[k] - told).abs().max()) < 1e-10
            assert float(changes[0][k].abs().max()) > 1e-4


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw", "amsgrad"])
def test_a_lasting_gradient_moves_as_the_scales_say(kind: str) -> None:
    theta = [torch.ones(4, requires_grad=True)]
    gradient = [torch.tensor([1.0, -2.0, 0.5, 3.0])]
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD(theta, lr=0.01),
        "momentum": lambda: torch.optim.SGD(theta, lr=0.01, momentum=0.9),
        "adam": lambda: torch.optim.Adam(theta, lr=0.01),
        "adamw": lambda: torch.optim.AdamW(theta, lr=0.01, weight_decay=0.0),
        "amsgrad": lambda: torch.optim.AdamW(theta, lr=0.01, weight_decay=0.0, amsgrad=True),
    }[kind]()
    for _ in range(200):
        theta[0].grad = gradient[0].clone()
        before = snapshot(theta)
        optimizer.step()
    scales = scales_of(optimizer, theta, [g.square() for g in gradient])
    assert scales is not None
    assert torch.allclose(step_of(gradient, scales)[0], difference(theta, before)[0], rtol=1e-3, atol=1e-6)


def test_what_was_hardly_touched_does_not_leap() -> None:
    """As under Adam itself: a gradient that has just begun moves an entry by about the learning rate at most."""
    theta = [torch.ones(2, requires_grad=True)]
    optimizer = torch.optim.Adam(theta, lr=0.01)
    for _ in range(5):
        theta[0].grad = torch.tensor([1.0, 1e-9])
        optimizer.step()
    lasting = [torch.tensor([1.0, 1.0])]
    scales = scales_of(optimizer, theta, lasting)
    fresh = scales_of(torch.optim.Adam(theta, lr=0.01), theta, lasting)
    assert fresh is not None
    assert step_of(lasting, fresh)[0].tolist() == pytest.approx([-0.01, -0.01], rel=1e-3), "before its first step"
    assert scales is not None
    assert step_of(lasting, scales)[0].tolist() == pytest.approx([-0.01, -0.01], rel=1e-3)


def test_an_optimizer_knows_its_second_moment_better_than_one_update() -> None:
    """One gradient, squared, is hardly a second moment: where it is small by chance, parts of it would explode."""
    generator = torch.Generator().manual_seed(0)
    theta = [torch.zeros(1000, requires_grad=True)]
    optimizer = torch.optim.Adam(theta, lr=0.01)
    for _ in range(200):
        theta[0].grad = torch.randn(1000, generator=generator)
        optimizer.step()
    scales = scales_of(optimizer, theta, [torch.randn(1000, generator=generator).square()])
    assert scales is not None
    # the gradients have a mean square of 1
    assert torch.as_tensor(scales[0]).tolist() == pytest.approx([0.01] * 1000, rel=0.25)
    seen = optimizer.state[theta[0]]["exp_avg_sq"] / (1 - 0.999**200)
    back = (1 - 0.999**200) / 0.001
    pooled = scales_of(optimizer, theta, [torch.full((1000,), 2.0)], updates=8)
    assert pooled is not None
    expected = 0.01 / ((back * seen + 8 * 2.0) / (back + 8)).sqrt()
    assert torch.allclose(torch.as_tensor(pooled[0]), expected, rtol=1e-4)


def test_forces_are_at_the_mean_rate_of_the_coming_steps() -> None:
    theta = [torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)]
    groups = [{"params": theta[:1], "lr": 0.1}, {"params": theta[1:], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert coming_rates(optimizer, scheduler, 5) == pytest.approx([0.05, 0.005])
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    told = [group["lr"] for group in optimizer.param_groups]
    # steps 2 and 3
    assert coming_rates(optimizer, scheduler, 2) == pytest.approx([0.0625, 0.00625])
    assert [group["lr"] for group in optimizer.param_groups] == told == coming_rates(optimizer, scheduler, 0)
    assert coming_rates(optimizer, None, 5) == coming_rates(optimizer, object(), 5) == told
    assert scales_of(optimizer, theta, theta, rate=[0.5, 0.25]) == [0.5, 0.25]


def test_another_optimizer_has_no_scales() -> None:
    theta = [torch.ones(2, requires_grad=True)]
    assert scales_of(torch.optim.Adagrad(theta), theta, theta) is None
    assert scales_of(torch.optim.SGD(theta, lr=0.1), [torch.ones(2)], theta) is None, "a parameter it does not train"


def test_inner_products_are_summed_in_float64() -> None:
    big = [torch.full((100_000,), 1e-4)]
    assert inner_product(big, big) == pytest.approx(1e-3, rel=1e-6)
    assert norm([torch.tensor([3.0, 4.0])]) == pytest.approx(5)
    assert math.isfinite(norm([torch.tensor([1.0], dtype=torch.bfloat16)]))


OPTIMIZERS = {
    "adam": lambda theta: torch.optim.Adam(theta, lr=0.1, betas=(0.8, 0.9)),
    "adamw": lambda theta: torch.optim.AdamW(theta, lr=0.1, betas=(0.8, 0.9), weight_decay=0.0),
    "sgd": lambda theta: torch.optim.SGD(theta, lr=0.1, momentum=0.7),
    "damped": lambda theta: torch.optim.SGD(theta, lr=0.1, momentum=0.7, dampening=0.4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_moment_is_what_the_optimizer_carries(name: str) -> None:
    """A step without a gradient is the carried part of a step on the moment."""
    torch.manual_seed(0)
    theta = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = OPTIMIZERS[name](theta)
    assert momentum_of(optimizer, theta).gradient is None, "before the first step"
    for _ in range(4):
        for p in theta:
            p.grad = torch.randn_like(p)
        optimizer.step()
    found = momentum_of(optimizer, theta)
    assert found.gradient is not None
    second = [torch.zeros_like(p) for p in theta]
    if "adam" in name:  # the step decays the second moment too
        second = [0.9 * optimizer.state[p]["exp_avg_sq"] / (1 - 0.9**5) for p in theta]
        told = [-0.1 * g / (v.sqrt() + 1e-8) for g, v in zip(found.gradient, second, strict=True)]
    else:
        scales = scales_of(optimizer, theta, second)
        assert scales is not None
        told = step_of(found.gradient, scales)
    before = [p.detach().clone() for p in theta]
    for p in theta:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    carried = reach([1.0], found.decay, found.steps).carried
    for p, b, step in zip(theta, before, told, strict=True):
        assert torch.allclose(p.detach() - b, carried * step, rtol=1e-4)


def test_there_is_no_moment_without_momentum() -> None:
    theta = [torch.nn.Parameter(torch.ones(3))]
    for optimizer in (torch.optim.SGD(theta, lr=0.1), torch.optim.Adagrad(theta)):
        theta[0].grad = torch.ones(3)
        optimizer.step()
        found = momentum_of(optimizer, theta)
        assert (found.decay, found.steps, found.gradient) == (0.0, math.inf, None)
