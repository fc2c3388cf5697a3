"""Scores, their gradients and forces as they are measured, on a tiny GPT whose answers are all enumerated."""

import itertools
import logging
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_words import END, WORDS, all_answers, word_model, word_tokenizer

from hf_lifealign.dynamics.following import Anchor
from hf_lifealign.dynamics.force_batch import ForceBatch, NotEstimableError, loss_gradients, split_gradients
from hf_lifealign.dynamics.likelihood import logps_of, undisturbed, weighted_gradient
from hf_lifealign.dynamics.measuring import AlignmentMeter, coverage_of
from hf_lifealign.dynamics.rehearsal import logit
from hf_lifealign.dynamics.samples import Samples, read_probes
from hf_lifealign.dynamics.updates import difference, inner_product, norm, snapshot
from hf_lifealign.judges import JudgeError

LENGTH = 2
PROMPTS = ["ask about yes", "about no", "ask no", "yes", "no about ask", "ask ask"]
ANSWERS = all_answers(LENGTH)


def fine(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float("fine" in answer or answer.startswith("yes")) for answer in answers]


def meter(**settings: Any) -> AlignmentMeter:
    given: dict[str, Any] = {"samples": 8, "max_new_tokens": LENGTH}
    return AlignmentMeter(read_probes(PROMPTS), fine, word_tokenizer(), **(given | settings))


class Exact:
    """S by enumeration."""

    def __init__(self) -> None:
        self.ids = [word_tokenizer()(text=prompt)["input_ids"] for prompt in PROMPTS]
        texts = word_tokenizer().batch_decode(ANSWERS, skip_special_tokens=True)
        self.labels = fine([], texts, [])
        self.rows = [ANSWERS] * len(PROMPTS)

    def probabilities(self, model: Any) -> torch.Tensor:
        return torch.tensor(logps_of(model, self.ids, self.rows), dtype=torch.float64).exp()

    def score(self, model: Any) -> float:
        return float((self.probabilities(model) * torch.tensor(self.labels)).sum(1).mean())

    def gradient(self, model: Any) -> list[torch.Tensor]:
        weights = self.probabilities(model) * torch.tensor(self.labels) / len(PROMPTS)
        return weighted_gradient(model, list(model.parameters()), self.ids, self.rows, weights.tolist())


def batch_of(words: str, prompt: str = "ask about yes") -> dict[str, torch.Tensor]:
    ids = word_tokenizer()(text=f"{prompt} {words} <end>")["input_ids"]
    labels = [-100] * len(prompt.split()) + ids[len(prompt.split()) :]
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}


def test_all_answers_are_enumerated() -> None:
    probabilities = Exact().probabilities(word_model().eval())
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * len(PROMPTS), abs=1e-5)


def test_the_score_is_that_of_the_enumeration() -> None:
    model = word_model().eval()
    drawn = meter(samples=400).draw(model, 0)
    found = meter().anchored(drawn)
    exact = Exact().score(model)
    assert 0.05 < exact < 0.95
    # 2400 answers: a standard error of about .01
    assert found.score == pytest.approx(exact, abs=0.04)
    assert drawn.logps == [
        pytest.approx(row, abs=1e-4) for row in logps_of(model, drawn.prompt_ids, drawn.completion_ids)
    ]
    assert all(ids and (ids[-1] == END or len(ids) == LENGTH) for row in drawn.completion_ids for ids in row)


def test_the_same_step_draws_the_same() -> None:
    model = word_model().eval()
    first, again, later = (meter().draw(model, step) for step in (3, 3, 4))
    assert first == again
    assert first.completion_ids != later.completion_ids


def test_a_models_own_settings_do_not_cut_what_it_says() -> None:
    model = word_model().eval()
    plain = meter().draw(model, 0)
    model.generation_config.update(top_k=1, temperature=0.1, do_sample=False, repetition_penalty=2.0, num_beams=2)
    assert meter().draw(model, 0).completion_ids == plain.completion_ids


def steps_of_training(model: Any, count: int, rate: float, kind: str = "sgd") -> Any:
    """Trains to and fro: aligned answers, then others, then aligned ones again; yields after each step."""
    optimizer: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind](model.parameters(), lr=rate)
    data = [
        [batch_of(words, prompt) for words in texts for prompt in PROMPTS[:3]]
        for texts in (("fine", "yes fine"), ("bad", "no bad"))
    ]
    for step in range(count):
        side = 1 if count // 3 <= step < 2 * count // 3 else 0
        batch = data[side][step % len(data[side])]
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        before = snapshot(model.parameters())
        optimizer.step()
        yield step, before


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_sampled_gradient_foretells_real_updates(kind: str) -> None:
    """Correlation of <grad S, d theta> with the true change of S, over the steps of a training, at n = 32."""
    model, exact = word_model().eval(), Exact()
    told, true = [], []
    tool = meter(samples=32)
    gradient, score = None, 0.0
    for step, before in steps_of_training(model, 60, 0.01 if kind == "sgd" else 2e-3, kind):
        if gradient is not None:
            change = difference(list(model.parameters()), before)
            told.append(inner_product(gradient, change))
            true.append(exact.score(model) - score)
        drawn = tool.draw(model, step)
        gradient = tool.score_gradient(model, list(model.parameters()), drawn, drawn.logps)
        score = exact.score(model)
    assert float(torch.corrcoef(torch.tensor([told, true]))[0, 1]) > 0.97
    assert max(true) > 0 > min(true)


def test_a_rescored_score_holds_while_its_samples_carry() -> None:
    model, exact, tool = word_model().eval(), Exact(), meter(samples=256)
    drawn = tool.draw(model, 0)
    start, shares = exact.score(model), []
    for _ in steps_of_training(model, 30, 5e-4, "adamw"):
        found = tool.rescored(drawn, tool.logps(model, drawn))
        if found.score.ess > 0.5:
            shares.append(found.score.ess)
            assert found.score.score == pytest.approx(exact.score(model), abs=0.05)
    assert len(shares) > 5
    assert abs(exact.score(model) - start) > 0.05, "it has moved"


def test_forces_add_up_to_the_loss_of_the_trainer() -> None:
    model = word_model().eval()
    parameters = list(model.parameters())
    rows = [batch_of(words, prompt) for words in ("fine", "no bad") for prompt in PROMPTS[:3]]

    def collate(given: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        width = max(row["input_ids"].shape[1] for row in given)
        pads = {"input_ids": 0, "labels": -100}
        return {
            key: torch.cat(
                [torch.nn.functional.pad(row[key], (0, width - row[key].shape[1]), value=pad) for row in given]
            )
            for key, pad in pads.items()
        }

    batch = ForceBatch(rows, collate, 4, accumulate=2)
    found = split_gradients(model, parameters, batch)
    whole = collate(rows)
    loss = torch.nn.functional.cross_entropy(
        model(input_ids=whole["input_ids"]).logits[:, :-1].flatten(0, 1), whole["labels"][:, 1:].flatten()
    )
    exact = torch.autograd.grad(loss, parameters)
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found.rows == 6
    assert norm(found.parts["rebound"]) > 0.01
    summed = [a + b for a, b in zip(found.parts["drive"], found.parts["rebound"], strict=True)]
    assert norm([a - b for a, b in zip(summed, exact, strict=True)]) < 1e-4 * norm(exact)
    # of any other loss there is the whole force alone
    other = loss_gradients(model, parameters, ForceBatch(rows, collate, 6), lambda m, inputs: m(**inputs).loss)
    assert set(other.parts) == {"total"}
    assert norm([a - b for a, b in zip(other.parts["total"], exact, strict=True)]) < 1e-4 * norm(exact)
    squares = [g.square() for g in exact]
    assert norm([a - b for a, b in zip(found.second, squares, strict=True)]) < 1e-3 * norm(squares), "one update"
    # an update for each row: the mean of squares is above the square of the mean
    single = split_gradients(model, parameters, ForceBatch(rows, collate, 1))
    assert norm(single.second) > norm(squares)
    clipped = split_gradients(model, parameters, ForceBatch(rows, collate, 6, max_norm=0.5 * norm(exact)))
    ratios = [norm(clipped.parts[name]) / norm(found.parts[name]) for name in ("drive", "rebound")]
    assert ratios == pytest.approx([0.5, 0.5], rel=1e-3)
    nothing = [{"input_ids": row["input_ids"], "labels": torch.full_like(row["labels"], -100)} for row in rows]
    with pytest.raises(NotEstimableError, match="not a token"):
        split_gradients(model, parameters, ForceBatch(nothing, collate, 4))


def test_a_force_batch_is_the_same_throughout() -> None:
    loader = torch.utils.data.DataLoader([{"a": i} for i in range(50)], batch_size=4, collate_fn=list)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    first, again = (ForceBatch.of(loader, 10, seed=3) for _ in range(2))
    assert first.rows == again.rows
    assert len(first.rows) == 24, "at least 6 updates"
    assert len(ForceBatch.of(loader, 42, seed=3).rows) == 40, "whole updates"
    assert torch.equal(torch.get_rng_state(), state)
    assert ForceBatch.of(loader, 10, seed=4).rows != first.rows
    assert len(ForceBatch.of(loader, 100, seed=3).rows) == 48
    few = torch.utils.data.DataLoader([{"a": i} for i in range(3)], batch_size=4, collate_fn=list)  # type: ignore[arg-type]
    assert len(ForceBatch.of(few, 100, seed=3).rows) == 3, "less than an update is better than none"

    class Shy:
        def __getitem__(self, i: int) -> dict[str, int]:
            return {"a": i}

        def __len__(self) -> int:
            raise NotImplementedError

    with pytest.raises(NotEstimableError, match="stream"):
        ForceBatch.of(SimpleNamespace(dataset=Shy()), 10, 0)
    for dataset, why in ((itertools.count(), "stream"), (range(5), "no rows of its own")):
        with pytest.raises(NotEstimableError, match=why):
            ForceBatch.of(torch.utils.data.DataLoader(_Fake(dataset)), 10, 0)  # type: ignore[arg-type]


class _Fake:
    def __init__(self, given: Any):
        if hasattr(given, "__len__"):
            self.rows = list(given)
            self.__class__ = _Sized  # type: ignore[assignment]


class _Sized(_Fake):
    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def test_narrowness_is_that_of_aligned_answers() -> None:
    tool = meter(samples=3)
    rows = [[[6, 7], [6, 1], [7, 6]], [[7, 1], [7, 6], [7, 7]]]
    drawn = Samples(0, tool.prompt_ids[:2], rows, [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [[0.0] * 3] * 2)
    # one probe has two aligned answers, which begin alike and go on otherwise
    assert tool.narrowness(drawn) == {"c_1": 1.0, "c_2": 0.0, "c_4": 0.0, "c_8": 0.0}
    drawn.labels = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert tool.narrowness(drawn) == {}


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], "all 4 samples are aligned"),
        ([[0.0, 0.0], [0.0, 0.0]], "all 4 samples are non-aligned"),
        ([[1.0, 1.0], [0.0, 0.0]], "no probe has both"),
        ([[1.0, 0.0], [0.0, 0.0]], None),
    ],
)
def test_what_is_one_sided_has_no_force(labels: list[list[float]], why: str | None) -> None:
    found = Samples(0, [[1], [2]], [[[1], [2]]] * 2, labels, [[0.0, 0.0]] * 2).one_sided()
    assert found is None if why is None else why in str(found)


def test_probes_come_in_many_forms(tmp_path: Any) -> None:
    turn = [{"role": "user", "content": "hello"}]
    rows = [{"prompt": turn, "chosen": [{"role": "assistant", "content": "good"}], "rejected": turn}]
    assert read_probes(rows)[0].reference == "good"
    assert read_probes([turn])[0].prompt == turn
    assert [probe.prompt for probe in read_probes(["a", "b", "c"], limit=2)] == ["a", "b"]
    (tmp_path / "test.jsonl").write_text('{"prompt": "from a file", "reference": "r"}\n')
    assert read_probes(str(tmp_path))[0].reference == "r"
    for wrong, why in (([], "no probes"), ([3], "Probe 0"), (["a", turn], "one form")):
        with pytest.raises(ValueError, match=why):
            read_probes(wrong)  # type: ignore[arg-type]


def test_probes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the model reads 32"):
        meter(max_new_tokens=30).refuse_too_long(word_model())
    meter().refuse_too_long(word_model())


def test_a_failing_judge_is_told_and_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> list[float]:
        raise ConnectionError("the judge's server is down")

    model = word_model().train()
    state = torch.get_rng_state()
    tool = meter()
    tool.judge = broken
    with caplog.at_level(logging.ERROR), undisturbed(model), pytest.raises(JudgeError, match="server is down"):
        tool.draw(model, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_halves_share_no_sample() -> None:
    drawn = meter(samples=5).draw(word_model().eval(), 0)
    a, b = drawn.half(0), drawn.half(1)
    assert [(len(x), len(y)) for x, y in zip(a.labels, b.labels, strict=True)] == [(3, 2)] * len(PROMPTS)
    for name in ("completion_ids", "labels", "logps"):
        rows = zip(getattr(drawn, name), getattr(a, name), getattr(b, name), strict=True)
        assert all(row[::2] == x and row[1::2] == y for row, x, y in rows)


def test_a_cross_check_predicts_by_one_half_and_measures_on_the_other() -> None:
    model = word_model().eval()
    parameters = list(model.parameters())
    tool = meter(samples=200)
    drawn = tool.draw(model, 0)
    halves = [tool.score_gradient(model, parameters, h, h.logps) for h in (drawn.half(0), drawn.half(1))]
    anchor = Anchor(drawn, 0.5, parameters=snapshot(parameters), halves=(halves[0], halves[1]))
    with torch.no_grad():
        for parameter, gradient in zip(parameters, Exact().gradient(model), strict=True):
            parameter += 0.05 * gradient
    logps = tool.logps(model, drawn)
    found = anchor.cross(parameters, logps)
    for which, pair in enumerate(found):
        mine, other = drawn.half(which), drawn.half(1 - which)
        score = tool.anchored(mine).score
        change = difference(parameters, anchor.parameters or [])
        assert pair[0] == pytest.approx(inner_product(halves[which], change) / (score * (1 - score)))
        now = [row[1 - which :: 2] for row in logps]
        assert pair[1] == pytest.approx(
            logit(tool.rescored(other, now).score.score) - logit(tool.anchored(other).score)
        )
        assert pair[0] == pytest.approx(pair[1], rel=0.3)
    anchor.halves = (None, halves[1])
    assert anchor.cross(parameters, logps) == [[None, found[0][1]], found[1]]
    anchor.halves = (None, None)
    assert anchor.cross(parameters, logps) == []


@pytest.mark.parametrize("fails", [False, True])
def test_all_processes_have_what_the_first_one_judges(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Two processes, one after the other: what the first one sends, the second one receives."""
    sent: list[list[Any]] = []
    rank = 0

    def broadcast(box: list[Any], src: int) -> None:
        if rank == 0:
            sent.append(list(box))
        else:
            box[:] = sent.pop(0)

    def moody(*given: Any) -> list[float]:
        if rank or fails:
            raise ConnectionError(f"asked by {rank}")
        return fine(*given)

    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    drawn: list[Any] = []
    for rank in (0, 1):
        tool = meter(seed=rank)
        tool.judge = moody
        try:
            drawn.append(tool.draw(word_model().eval(), 0))
        except JudgeError as error:
            drawn.append(str(error))
    assert drawn[0] == drawn[1]
    assert ("asked by 0" in drawn[0]) if fails else isinstance(drawn[0], Samples)


def test_the_words_are_what_the_tests_say() -> None:
    assert word_tokenizer()(text="ask fine <end>")["input_ids"] == [WORDS.index("ask"), WORDS.index("fine"), END]


def test_samples_that_miss_what_the_model_says_now() -> None:
    """A model that turns to answers which were hardly drawn: their mean weight tells what the effective share hides."""
    model, tokenizer = word_model().eval(), word_tokenizer()
    meter = AlignmentMeter(read_probes(["ask", "about", "yes no", "fine"]), fine, tokenizer, 64, 3)
    samples = meter.draw(model, 0)
    same = meter.rescored(samples, samples.logps)
    assert (same.coverage, same.missed) == (1.0, None)
    exact = coverage_of([[0.0, math.log(3)], [math.log(0.5), math.log(0.5)]])
    assert exact == (pytest.approx(1.25), pytest.approx(0.75))
    assert coverage_of([[0.0, math.log(0.5)]]) == (0.75, 0.0)
    assert math.isfinite(sum(coverage_of([[1000.0, 0.0], [-1000.0, 0.0]]))), "JSON knows no infinity"
    half = [[logp + math.log(0.6) for logp in row] for row in samples.logps]
    found = meter.rescored(samples, half)
    assert found.coverage == pytest.approx(0.6)
    assert found.missed == "the samples miss 40 % of what the model says now"
    assert found.score.ess == pytest.approx(1.0), "which the effective share does not see"
    other = word_model(1).eval()
    meter = AlignmentMeter(read_probes(["ask", "about", "yes no", "fine"]), fine, tokenizer, 2000, 2)
    with undisturbed(model):
        samples = meter.draw(model, 0)
    found = meter.rescored(samples, meter.logps(other, samples))
    assert found.coverage == pytest.approx(1.0, abs=0.25), "another model, all of whose answers were drawn"
    assert found.missed is None


def test_forces_are_those_of_the_gradient_with_their_errors() -> None:
    model, tokenizer = word_model().eval(), word_tokenizer()
    parameters = list(model.parameters())
    steps = [[scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for p in parameters]
             for i, scale in enumerate((1e-3, 2e-3))]  # fmt: skip
    prompts = ["ask", "about", "yes no", "fine", "no", "ask yes", "about no", "yes", "fine fine", "no no"]
    meter = AlignmentMeter(read_probes(prompts), fine, tokenizer, 6, 3)
    totals, errors = [], []
    for seed in range(30):
        samples = meter.draw(model, seed)
        found = meter.forces(model, parameters, samples, steps)
        gradient = meter.score_gradient(model, parameters, samples, samples.logps)
        assert [value for value, _ in found] == pytest.approx(
            [inner_product(gradient, step) for step in steps], rel=1e-3
        )
        totals.append([value for value, _ in found])
        errors.append([error for _, error in found])
    spread = torch.tensor(totals).std(dim=0)
    told = torch.tensor(errors).mean(dim=0)
    assert torch.all((told / spread > 0.6) & (told / spread < 2.5)), "prompts differ, so that it errs on the large side"
    single = AlignmentMeter(read_probes(["ask"]), fine, tokenizer, 6, 3)
    samples = single.draw(model, 0)
    assert math.isnan(single.forces(model, parameters, samples, steps)[0][1])
