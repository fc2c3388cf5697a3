"""MetaAlignerTrainer: what moves in which update, along which gradient, and what reward functions are given."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from meal_helpers import Watch, everything, lora, prompts_only, same, short, text_of, trainer_of, vowels, watched
from peft import get_peft_model
from support.tiny import tiny_model, tiny_tokenizer
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign import MetaAlignerTrainer
from hf_lifealign.meta_aligner.preferences import preference_divergence
from hf_lifealign.meta_aligner.schedule import INNER, OUTER, PRETRAIN

KINDS = ["logit_bias", "lora", "logit_bias_on_lora"]


def settings_of(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"conditioning": "lora" if kind == "lora" else "logit_bias"}
    return found | ({"peft_config": lora()} if "lora" in kind else {})


def changed(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], part: str) -> bool:
    names = [name for name in a if part in name]
    assert names
    return any(not torch.equal(a[name], b[name]) for name in names)


# Which side moves when


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_update_moves_its_own_side_alone(kind: str, tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, **settings_of(kind))
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if "lora_" not in n}
    trainer.train()
    assert watch.kinds == [PRETRAIN] * 4 + [INNER, OUTER] * 3
    updates = list(zip(watch.kinds, watch.grads, watch.before, watch.after, strict=True))
    # a new adapter is zero, and so is at first what its scales could change
    for kind_, grads, before, after in updates[kind == "lora" :]:
        psi, theta, adapter = grads["weight_net"], grads["conditioning"], grads["adapter"]
        if kind_ == INNER:
            assert all(g is None for g in psi)
            assert any(g is not None and g.abs().sum() > 0 for g in theta)
        elif kind_ == OUTER:
            assert all(g is None for g in theta)
            assert any(g is not None and g.abs().sum() > 0 for g in psi)
        assert changed(before, after, "weight_net.") == (kind_ != INNER)
        assert changed(before, after, "conditioning.") == (kind_ != OUTER)
        if "lora" in kind:
            adapts = kind_ == PRETRAIN or (kind_ == INNER and kind == "lora")
            assert any(g is not None for g in adapter) == adapts
            assert changed(before, after, "lora_") == adapts
    for name, parameter in trainer.model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name
            assert parameter.grad is None, name
    assert trainer.policy.conditioning._given is None


def test_the_base_is_bit_unchanged_and_answers_as_before_without_a_preference(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    ids = tiny_tokenizer()("item 3?", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(**ids).logits, tiny_model().eval()(**ids).logits)
        with trainer.policy.under([0.9, 0.1], 1):
            assert not torch.allclose(trainer.model(**ids).logits, tiny_model().eval()(**ids).logits)


# The gradients


def by_hand(trainer: MetaAlignerTrainer, inputs: dict[str, Any], kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Likelihood and divergence of a batch of plain logits, through ``x -> f_psi -> g_phi -> head``."""
    policy, model = trainer.policy, tiny_model().eval()
    with torch.no_grad():
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = trainer.offline_rows if kind == PRETRAIN else trainer.prompt_rows
        features = policy.encode([rows[i]["prompt"] for i in inputs["prompts"]])
    net = policy.weight_net
    normed = torch.nn.functional.layer_norm(features, (features.shape[1],))
    logits = net.output(torch.nn.functional.gelu(net.hidden(normed)))
    weights = torch.softmax(logits, -1) if kind == OUTER else inputs["targets"]
    phi: Any = policy.conditioning
    bias = phi.output(torch.nn.functional.gelu(phi.input(weights)))
    length = inputs["completion_ids"].shape[1]
    scores = torch.log_softmax(model.lm_head(states + bias.unsqueeze(1)), -1)[:, -length - 1 : -1]
    logps = scores.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    nll = -(logps * inputs["completion_mask"]).sum(-1).mean()
    return nll, preference_divergence(torch.log_softmax(logits, -1), inputs["targets"]).mean()


class Batches(Watch):
    """Also keeps the inputs and the hand-made gradients of the updates of a kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.expected, self.losses = kind, [], []  # type: ignore[var-annotated]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        compute = type(self.trainer)._compute_loss

        def kept(model: Any, inputs: Any) -> torch.Tensor:
            if self.trainer._kind == self.kind and self.trainer.model.training:
                own = [*self.trainer.policy.weight_net.parameters(), *self.trainer.policy.conditioning.parameters()]
                for p in own:
                    p.requires_grad_(True)
                nll, divergence = by_hand(self.trainer, inputs, self.kind)
                loss = nll + (1.0 if self.kind == PRETRAIN else self.trainer.args.supervision) * divergence
                self.expected.append(torch.autograd.grad(loss, own))
                self.losses.append((nll.item(), divergence.item()))
                self.trainer._begin(self.kind)
            return compute(self.trainer, model, inputs)

        self.trainer._compute_loss = kept  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", [PRETRAIN, OUTER])
def test_gradients_are_plain_backprop_through_policy_and_net(kind: str, tmp_path: Path) -> None:
    watch = Batches(kind)
    # temperature and nucleus are of generation: the likelihood must not know them
    trainer = watch.trainer = trainer_of(
        tmp_path, callbacks=[watch], max_grad_norm=0.0, supervision=0.7, temperature=0.6, top_p=0.8
    )
    trainer.train()
    grads = [g for k, g in zip(watch.kinds, watch.grads, strict=True) if k == kind]
    assert len(grads) == len(watch.expected) >= 3
    logs = [entry for entry in trainer.state.log_history if f"{kind}/nll" in entry]
    for found, expected, (nll, divergence), log in zip(grads, watch.expected, watch.losses, logs, strict=True):
        own = [*found["weight_net"], *(found["conditioning"] if kind == PRETRAIN else [])]
        for ours, theirs in zip(own, expected, strict=False):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert log[f"{kind}/nll"] == pytest.approx(nll, rel=1e-4)
        assert log["supervised"] == pytest.approx(divergence, rel=1e-3, abs=1e-6)
        scale = 1.0 if kind == PRETRAIN else 0.7
        assert log["loss"] == pytest.approx(nll + scale * divergence, rel=1e-4)
    if kind == OUTER:  # what reaches psi is not the supervised part alone
        net = trainer.policy.weight_net
        assert net.hidden.weight.abs().sum() > 0
        assert any(g.abs().sum() > 0 for g in watch.expected[-1][: len(list(net.parameters()))])


def test_the_likelihood_reaches_the_net_even_without_supervision(tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, supervision=0.0)
    trainer.train()
    last = [g for k, g in zip(watch.kinds, watch.grads, strict=True) if k == OUTER][-1]["weight_net"]
    assert all(g is not None and torch.isfinite(g).all() for g in last)
    assert sum(g.abs().sum().item() for g in last) > 1e-3


def test_loss_per_token_is_the_mean(tmp_path: Path) -> None:
    logs = []
    for per_token in (False, True):
        trainer = trainer_of(tmp_path, loss_per_token=per_token, max_steps=1, max_grad_norm=0.0, rows=1)
        trainer.train()
        logs.append(trainer.state.log_history[0])
        lengths = [len(c) for _, c in trainer.offline_tokens]
        assert len(set(lengths)) == 1
    assert logs[0]["pretrain/nll"] == pytest.approx(logs[1]["pretrain/nll"] * lengths[0], rel=1e-5)


# Where weights come from


@pytest.mark.parametrize("source", ["frozen", "reward", "random", "uniform"])
def test_ablations_have_no_outer_steps_and_leave_the_net_as_pretrained(source: str, tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, weight_source=source)
    seen: list[torch.Tensor] = []
    give = trainer.policy.conditioning.give

    def kept(weights: torch.Tensor | None) -> None:
        if weights is not None and trainer._kind == INNER:
            seen.append(weights.detach().clone())
        give(weights)

    trainer.policy.conditioning.give = kept  # type: ignore[method-assign]
    buffers: dict[int, Any] = {}
    choose = trainer._choose

    def keep(answers: Any) -> Any:
        buffers[1] = choose(answers)
        return buffers[1]

    trainer._choose = keep  # type: ignore[method-assign]
    trainer.train()
    assert watch.kinds == [PRETRAIN] * 4 + [INNER] * 3
    assert changed(watch.before[0], watch.after[3], "weight_net.")
    assert not changed(watch.after[3], watch.after[-1], "weight_net.")
    used = torch.cat(seen)
    torch.testing.assert_close(used.sum(-1), torch.ones(len(used)))
    rows = {tuple(round(x, 5) for x in row) for row in used.tolist()}
    buffer = buffers[1]
    generated = torch.tensor([a.weights for a in buffer.answers])
    kept_rows = torch.tensor(buffer.kept)
    if source == "uniform":
        assert rows == {(0.5, 0.5)}
    elif source == "random":
        assert len(rows) > 3
        assert rows <= {tuple(round(x, 5) for x in row) for row in generated.tolist()}
        assert generated.std(0).min() > 0.1
    elif source == "reward":
        assert rows == {tuple(round(x, 5) for x in row) for row in buffer.targets[kept_rows].tolist()}
    else:
        net = trainer.policy.preference([row["prompt"] for row in trainer.prompt_rows])
        torch.testing.assert_close(generated, net[[a.prompt for a in buffer.answers]], rtol=1e-5, atol=1e-6)
        for row in used:
            assert (net - row).abs().amax(-1).min() < 1e-5


@pytest.mark.parametrize("selection", ["weighted_top", "any_quantile"])
@pytest.mark.parametrize("scope", ["buffer", "prompt"])
def test_a_round_trains_on_what_its_rule_keeps(selection: str, scope: str, tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, selection=selection, scope=scope, rho=0.5, num_generations=4, generation_batch_size=16, rows=6
    )
    buffers = []
    choose = trainer._choose
    trainer._choose = lambda answers: buffers.append(choose(answers)) or buffers[-1]  # type: ignore[method-assign]
    used: set[tuple[int, tuple[int, ...]]] = set()
    compute = trainer._compute_loss

    def kept(model: Any, inputs: Any) -> torch.Tensor:
        if trainer._kind == INNER:
            used.update((a.prompt, tuple(a.completion_ids)) for a in inputs["answers"])
        return compute(model, inputs)

    trainer._compute_loss = kept  # type: ignore[method-assign]
    trainer.train()
    (buffer,) = buffers
    assert len(buffer.answers) == 24
    assert len(buffer.kept) == 12 == trainer.schedule.kept_rows
    chosen = [buffer.answers[i] for i in buffer.kept]
    assert used == {(a.prompt, tuple(a.completion_ids)) for a in chosen}
    counts = [sum(a.prompt == p for a in chosen) for p in range(6)]
    assert (counts == [2] * 6) == (scope == "prompt")
    if selection == "weighted_top" and scope == "buffer":
        merit = (buffer.scores * torch.tensor([a.weights for a in buffer.answers])).sum(-1)
        rest = [i for i in range(24) if i not in set(buffer.kept)]
        assert merit[buffer.kept].min() >= merit[rest].max()
    log = next(entry for entry in trainer.state.log_history if "kept" in entry)
    assert log["kept"] == 0.5
    assert log["reward/inner_product_kept"] > log["reward/inner_product"]
    assert log["rewards/short/mean"] == pytest.approx(sum(a.rewards[0] for a in buffer.answers) / 24)
    assert log["completions/mean_length"] == pytest.approx(sum(len(a.completion_ids) for a in buffer.answers) / 24)
    # TRL's own figures of a batch, which a resumed round lacks
    assert "completions/mean_terminated_length" not in log


def test_every_round_draws_anew_and_none_is_drawn_from_the_state_of_another(tmp_path: Path) -> None:
    still = {"learning_rate": 0.0, "weight_learning_rate": 0.0, "num_rounds": 2, "rows": prompts_only(8)}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(drawn))
        trainer = trainer_of(tmp_path / str(len(drawn)), seed=seed, **still)
        rounds: list[Any] = []
        choose = trainer._choose
        trainer._choose = lambda a, r=rounds, c=choose: r.append([x.completion_ids for x in a]) or c(a)  # type: ignore
        trainer.train()
        drawn.append(rounds)
    assert drawn[0] == drawn[1] != drawn[2]
    first, second = drawn[0]
    assert len(first) == len(second) == 16
    assert not any(a == b for a, b in zip(first, second, strict=True))
    assert len({tuple(answer) for answer in first}) == 16, "batches and answers of a prompt draw anew as well"


def test_rounds_take_prompts_in_turns(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, num_rounds=3, prompts_per_round=4, rows=6)
    turns = [trainer.round_prompts(number) for number in (1, 2, 3)]
    assert sorted(turns[0] + turns[1] + turns[2]) == sorted(list(range(6)) * 2)
    trainer.train()
    rounds = [entry["round"] for entry in trainer.state.log_history if "round" in entry]
    assert rounds == [1.0, 2.0, 3.0]


# Data, adapters, encoders


def test_plain_prompts_with_an_offline_set_of_their_own(tmp_path: Path) -> None:
    prompts = Dataset.from_list([{"prompt": f"item {i}:"} for i in range(4)])
    offline = Dataset.from_list([{"prompt": f"thing {i}:", "completion": f" {'yes' * i}"} for i in range(5)])
    trainer = trainer_of(tmp_path, rows=prompts, offline=offline, max_completion_length=6)
    tokenizer = tiny_tokenizer()
    assert [tokenizer.decode(p) for p, _ in trainer.offline_tokens] == [f"thing {i}:" for i in range(5)]
    assert [tokenizer.decode(c) for _, c in trainer.offline_tokens[:3]] == [" <eos>", " yes<eos>", " yesye"]
    trainer.train()
    assert len(trainer.policy.generate(["item 3:"], max_new_tokens=3)) == 1


def test_without_a_length_limit_offline_answers_stay_whole(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, rows=2, max_completion_length=None)
    texts = [tiny_tokenizer().decode(c) for _, c in trainer.offline_tokens]
    assert texts[1].startswith("no it is 0<|im_end|>")


def test_without_an_offline_set_the_first_round_gives_the_scale(tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, rows=prompts_only(6), num_rounds=2)
    trainer.train()
    assert set(watch.kinds) == {INNER, OUTER}
    statistics = trainer.policy.statistics
    assert statistics is not None
    log = next(entry for entry in trainer.state.log_history if "round" in entry)
    assert statistics.mean[0].item() == pytest.approx(log["rewards/short/mean"])
    assert statistics.std[0].item() == pytest.approx(log["rewards/short/std"])


@pytest.mark.parametrize("conditioning", ["logit_bias", "lora"])
def test_a_peft_model_is_taken_with_its_adapter(conditioning: str, tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), lora())
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    start = {n: p.clone() for n, p in model.named_parameters() if "lora_" in n}
    trainer = trainer_of(tmp_path, model=model, conditioning=conditioning, pretrain_learning_rate=0.0)
    assert list(trainer.model.peft_config) == ["default"]
    assert set(trainer.adapter_tensors()) == set(start)
    trainer.train()
    moved = any(not torch.equal(p, start[n]) for n, p in trainer.model.named_parameters() if n in start)
    assert moved == (conditioning == "lora"), "with a pre-training rate of 0 only the meta phase moves anything"
    assert all(p.requires_grad for p in trainer.adapter_tensors().values())


@pytest.mark.parametrize("rate", [0.0, 1e-2])
def test_an_encoder_learns_only_where_it_is_told_to(rate: float, tmp_path: Path) -> None:
    name = save_tiny_encoder(tmp_path / "bert")
    trainer, watch = watched(tmp_path / "run", encoder=name, encoder_learning_rate=rate)
    encoder: Any = trainer.policy.encoder
    states: list[dict[str, torch.Tensor]] = []
    watch.on_optimizer_step = lambda *a, **k: states.append(  # type: ignore[method-assign]
        {n: p.detach().clone() for n, p in encoder.named_parameters()}
    )
    start = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    trainer.train()
    assert len(states) == len(watch.kinds) == 10
    # the net's last layer starts at zero, so that the first step does not reach the encoder
    for kind, before, after in list(zip(watch.kinds, [start, *states], states, strict=False))[1:]:
        assert same(before, after) == (rate == 0 or kind == INNER)
    log = trainer.state.log_history[0]
    assert log["weight_learning_rate"] == pytest.approx(2e-2)


def test_new_objectives_join_a_trained_policy(tmp_path: Path) -> None:
    first = trainer_of(tmp_path / "one")
    first.train()
    first.save_model()

    def long_words(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return [max(map(len, text_of(c).split() or [""])) * 1.0 for c in completions]

    second = trainer_of(tmp_path / "two", rewards=(short, vowels, long_words), eval_rows=prompts_only(4))
    second.continue_from(tmp_path / "one")
    old = first.policy.preference(["x"])
    assert torch.equal(second.policy.preference(["x"])[:, :2], old)
    second.evaluate()  # with statistics that do not know the new one
    second.train()
    assert second.policy.preference(["x"])[0, 2] > 0.01
    ours, theirs = second.policy.statistics, first.policy.statistics
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours.mean[:2], theirs.mean)
    assert ours.std[2] > 0


# Steps


def test_accumulated_steps_equal_a_batch_twice_as_large(tmp_path: Path) -> None:
    found = []
    for batch, steps in ((4, 1), (2, 2)):
        trainer = trainer_of(
            tmp_path, rows=6, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, seed=3
        )
        trainer.train()
        assert trainer.state.global_step == trainer.schedule.updates
        found.append((everything(trainer), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    (whole, losses), (parts, others) = found
    assert others == pytest.approx(losses, rel=1e-3)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-2, atol=1e-3)


def test_training_twice_starts_again_with_fresh_answers(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    generated: list[int] = []
    generate = trainer._generate_round
    trainer._generate_round = lambda n: generated.append(n) or generate(n)  # type: ignore[method-assign]
    trainer.train()
    first = everything(trainer)
    trainer.train()
    assert generated == [1, 1]
    assert not same(first, everything(trainer))
    assert trainer.state.global_step == trainer.schedule.updates


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    runs = []
    for i, seed in enumerate((1, 1, 2)):
        torch.manual_seed(i)
        trainer = trainer_of(tmp_path / str(i), seed=seed)
        trainer.train()
        runs.append(everything(trainer))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_checkpointed_layers_train_alike(tmp_path: Path) -> None:
    runs = []
    for on in (False, True):
        trainer = trainer_of(tmp_path, conditioning="lora", peft_config=lora(), gradient_checkpointing=on)
        trainer.train()
        runs.append(everything(trainer))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-3, atol=1e-4)


def test_bfloat16_trains(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, bf16=True, peft_config=lora(), conditioning="lora")
    trainer.train()
    assert all(torch.isfinite(t).all() for t in everything(trainer).values())
    assert all(math.isfinite(e["loss"]) for e in trainer.state.log_history if "loss" in e)


def test_evaluation_answers_under_the_net_and_logs_rewards(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_rows=prompts_only(4))
    before = trainer.evaluate()
    assert "eval_loss" in before
    trainer.train()
    state = everything(trainer)
    metrics = trainer.evaluate()
    assert same(state, everything(trainer))
    log = trainer.state.log_history[-1]
    assert metrics["eval_loss"] == pytest.approx(-log["eval_reward/inner_product"], rel=1e-4)
    chosen = trainer.policy.preference([row["prompt"] for row in prompts_only(4)]).mean(0)
    assert log["eval_preference/short"] == pytest.approx(chosen[0].item(), rel=1e-4)
    assert -60 < log["eval_rewards/short/mean"] <= 0


def test_learning_rates_are_those_of_each_side_and_phase(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, learning_rate=0.01, pretrain_learning_rate=0.0, weight_learning_rate=0.02,
        pretrain_weight_learning_rate=0.03, lr_scheduler_type="linear",
    )  # fmt: skip
    trainer.train()
    logs = [e for e in trainer.state.log_history if "learning_rate" in e]
    assert len(logs) == 10
    weights = [0.03 * (4 - i) / 4 for i in range(4)] + [0.02 * (3 - i) / 3 for i in (0, 0, 1, 1, 2, 2)]
    policy = [0.0] * 4 + [0.01 * (3 - i) / 3 for i in (0, 1, 1, 2, 2, 3)]
    assert [e["weight_learning_rate"] for e in logs] == pytest.approx(weights, abs=1e-9)
    assert [e["learning_rate"] for e in logs] == pytest.approx(policy, abs=1e-9)
