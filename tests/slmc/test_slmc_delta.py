"""Space "delta" against a dense float64 oracle: projection, invariance, best rank-r weights, refill, compression."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slmc_helpers import disturb, live, tiny_model

from hf_lifealign.slmc import lowrank
from hf_lifealign.slmc.consolidation import Settings, consolidate_delta
from hf_lifealign.slmc.lowrank import Cumulative, Factors, certified_svd, exact_svd, gram_of
from hf_lifealign.slmc.model import find_tuner

DELTA = Settings(space="delta")


def dense_refined(before, now, past, scaling, options):
    """SM' and RSM of the dense m x n change."""
    (A0, B0), (A1, B1) = before, now
    U, S, Vh = torch.linalg.svd(scaling * (B1 @ A1 - B0 @ A0), full_matrices=False)
    share = S.square().cumsum(0) / S.square().sum()
    k = int((share < options.denoising_threshold).sum()) + 1
    short = (U[:, :k] * S[:k]) @ Vh[:k]
    if not past:
        return short, short
    V, s, _ = torch.linalg.svd(torch.stack([p.flatten() for p in past], 1), full_matrices=False)
    V = V[:, s > 1e-10 * s[0]]
    return short, short - (1 - options.projection_weight) * (V @ (V.T @ short.flatten())).view_as(short)


def best_rank(matrix, rank):
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def life(m, n, r, tasks, seed, options, scaling=2.0, gauge=False):
    """Consolidated life of one module: per task (before, now, staged)."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A, B = noise(r, n), torch.zeros(m, r, dtype=torch.float64)
    history, gram = [], None
    for index in range(tasks):
        before = (A, B)
        now = (A + 0.3 * noise(r, n), B + 0.3 * noise(m, r))
        G = torch.eye(r, dtype=torch.float64) + 0.4 * noise(r, r)
        if gauge:
            now = (torch.linalg.solve(G, now[0]), now[1] @ G)
        staged = consolidate_delta("w", before, now, scaling, history, gram, options, index)
        yield before, now, staged
        history = list(staged.added) if staged.replaces else [*history, *staged.added]
        gram, (A, B) = staged.gram, staged.weights


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(2, 14),
    n=st.integers(2, 14),
    r=st.integers(1, 4),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_six_task_histories_agree_with_the_dense_oracle(m, n, r, weight, seed):
    options, past = Settings(0.9, weight, "delta"), []
    for before, now, staged in life(m, n, r, 6, seed, options):
        short, refined = dense_refined(before, now, past, 2.0, options)
        if past:
            angles = torch.linalg.svdvals(torch.stack([p.flatten() / p.norm() for p in [*past, short]], 1))
            if angles[-1] < 1e-4:
                break  # the space is nearly full and the projection ill-conditioned for the oracle itself
        past.append(short)
        left, right = staged.added[0]
        assert torch.dist(left.T @ right, short) <= 1e-6 * short.norm()
        assert staged.report.refined_norm == pytest.approx(float(refined.norm()), abs=1e-6 * float(short.norm()))
        cumulative = 2.0 * before[1] @ before[0] + refined
        A, B = staged.weights
        error, best = torch.dist(2.0 * B @ A, cumulative), torch.dist(best_rank(cumulative, r), cumulative)
        assert float(error) <= float(best) * (1 + 1e-6) + 1e-6 * float(cumulative.norm())
        assert staged.report.recompression_error == pytest.approx(float(best / cumulative.norm()), abs=1e-6)


def test_result_does_not_depend_on_how_the_change_is_factored():
    plain = life(12, 10, 3, 4, 0, DELTA)
    turned = life(12, 10, 3, 4, 0, DELTA, gauge=True)
    for (_, _, one), (_, _, other) in zip(plain, turned, strict=True):
        (A, B), (A2, B2) = one.weights, other.weights
        assert torch.dist(B @ A, B2 @ A2) <= 1e-6 * (B @ A).norm()
        assert one.report.history_share == pytest.approx(other.report.history_share, abs=1e-6)


def test_lambda_one_without_loss_gives_back_what_training_left():
    for _, (A1, B1), staged in life(9, 8, 3, 3, 1, Settings(1.0, 1.0, "delta")):
        A, B = staged.weights
        assert torch.dist(B @ A, B1 @ A1) <= 1e-9 * (B1 @ A1).norm()
        assert staged.report.recompression_error <= 1e-6


def wide_sum(overlap, seed=0, m=60, n=50, r=3, K=200):
    torch.manual_seed(seed)
    d = 2 * r
    dominant = (torch.randn(d, m, dtype=torch.float64), torch.randn(d, n, dtype=torch.float64))
    past = (torch.randn(K, m, dtype=torch.float64), torch.randn(K, n, dtype=torch.float64))
    # Three of the six dominant directions stand out, as a gap to prove.
    dominant[0][r:] *= 0.05
    return Cumulative(*dominant, *past, overlap * torch.randn(K, dtype=torch.float64))


@pytest.mark.parametrize("overlap", [1e-6, 1e-3, 0.01])
def test_certified_triplets_are_those_of_the_dense_svd(overlap, monkeypatch):
    matrix, r = wide_sum(overlap), 3
    whole = matrix.factors()
    dense = whole.left @ whole.right
    monkeypatch.setattr(lowrank, "exact_svd", lambda factors: pytest.fail("the gap was there to be proved"))
    products = matrix.dominant_right @ matrix.history_right.T
    svd = certified_svd(matrix, products, float(dense.square().sum()), r)
    got, wanted = (svd.U * svd.S) @ svd.Vh, best_rank(dense, r)
    assert torch.dist(dense, got) <= torch.dist(dense, wanted) * (1 + 1e-6)


def test_without_a_gap_the_exact_way_decides():
    matrix = wide_sum(3.0)
    whole = matrix.factors()
    dense = whole.left @ whole.right
    svd = certified_svd(matrix, matrix.dominant_right @ matrix.history_right.T, float(dense.square().sum()), 3)
    assert torch.allclose((svd.U[:, :3] * svd.S[:3]) @ svd.Vh[:3], best_rank(dense, 3), atol=1e-8)


def test_unused_directions_are_refilled_and_get_a_gradient():
    A0, B0 = torch.randn(4, 10, dtype=torch.float64), torch.zeros(8, 4, dtype=torch.float64)
    B1 = B0.clone()
    B1[:, 0] = torch.randn(8, dtype=torch.float64)
    results = [consolidate_delta("m", (A0, B0), (A0, B1), 2.0, [], None, DELTA, i) for i in (0, 0, 1)]
    A, B = results[0].weights
    assert results[0].report.refilled == 3
    assert torch.allclose(B @ A, B1 @ A0, atol=1e-12)
    assert torch.equal(B[:, 1:], torch.zeros_like(B[:, 1:]))
    used = A[0] / A[0].norm()
    assert float((A[1:] @ used).abs().max()) < 1e-12
    assert torch.equal(A, results[1].weights[0])
    assert not torch.equal(A, results[2].weights[0])
    A, B = A.requires_grad_(), B.requires_grad_()
    torch.randn(8, 10, dtype=torch.float64).mul(B @ A).sum().backward()
    dead = (A.grad.norm(dim=1) == 0) & (B.grad.norm(dim=0) == 0)
    assert not dead.any()


def test_zero_task_leaves_the_function_and_revives_every_direction():
    A, B = torch.randn(3, 7), torch.zeros(5, 3)
    staged = consolidate_delta("m", (A, B), (A, B), 1.0, [], None, DELTA, 0)
    assert staged.report.rank_kept == 0
    assert torch.equal(staged.weights[1] @ staged.weights[0], torch.zeros(5, 7))
    assert bool((staged.weights[0].norm(dim=1) > 0).all())


def test_rank_above_the_module_size():
    A0, B0 = torch.randn(6, 3), torch.zeros(4, 6)
    staged = consolidate_delta("m", (A0, B0), (A0, torch.randn(4, 6)), 1.0, [], None, Settings(1.0, 1.0, "delta"), 0)
    assert bool(torch.isfinite(staged.weights[0]).all())
    assert staged.weights[0].shape == (6, 3)


def test_compressed_history_spans_the_leading_directions():
    torch.manual_seed(0)
    parts = [Factors(torch.randn(12, 2, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)) for _ in range(4)]
    dense = torch.stack([(p.left @ p.right).flatten() for p in parts], 1)
    gram = gram_of(parts)
    assert torch.allclose(gram, dense.T @ dense)
    mixture = torch.linalg.eigh(gram)[1][:, -2:]
    for j, part in enumerate(lowrank.compress_history(parts, mixture, 8)):
        assert torch.allclose((part.left @ part.right).flatten(), dense @ mixture[:, j], atol=1e-10)


def test_exact_svd_of_factors_is_the_svd_of_the_product():
    torch.manual_seed(0)
    factors = Factors(torch.randn(30, 4, dtype=torch.float64), torch.randn(4, 20, dtype=torch.float64))
    svd, dense = exact_svd(factors), factors.left @ factors.right
    assert torch.allclose((svd.U * svd.S) @ svd.Vh, dense, atol=1e-12)
    assert torch.allclose(svd.S, torch.linalg.svdvals(dense)[:4])


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_memory_rank_keeps_memory_constant(space):
    model = tiny_model(space=space, memory_rank=2)
    sizes = []
    for task in range(5):
        live(model, 1, first=task)
        sizes.append((model.memory.length, model.memory.nbytes))
    assert [length for length, _ in sizes] == [1, 2, 2, 2, 2]
    per_task = sizes[1][1]
    bound = per_task if space == "factors" else 2.1 * per_task
    assert all(nbytes <= bound for _, nbytes in sizes)
    assert sizes[3][1] == sizes[4][1]
    kept = model.memory.entries[-1]["report"]["totals"]["history_energy_kept"]
    assert 0 < kept < 1


def test_delta_through_the_model_is_the_dense_oracle():
    model = tiny_model(space="delta", use_rslora=True)
    tuner, past = find_tuner(model), {}
    for task in range(3):
        model.begin_task(f"t{task}")
        before = {x.name: (x.A.detach().double(), x.B.detach().double()) for x in tuner._adapted_modules("default")}
        disturb(model, task)
        now = {x.name: (x.A.detach().double(), x.B.detach().double()) for x in tuner._adapted_modules("default")}
        model.consolidate()
        for module in tuner._adapted_modules("default"):
            s = module.scaling
            assert s == 8 / 4**0.5
            history = past.setdefault(module.name, [])
            short, refined = dense_refined(before[module.name], now[module.name], history, s, DELTA)
            history.append(short)
            wanted = best_rank(s * before[module.name][1] @ before[module.name][0] + refined, 4)
            got = s * module.B.detach().double() @ module.A.detach().double()
            assert torch.dist(got, wanted) <= 1e-5 * wanted.norm()
