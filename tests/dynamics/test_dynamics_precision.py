"""What bfloat16 costs a rescored sample, on the real model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lifealign.dynamics.likelihood import answer_logps
from hf_lifealign.models import resolve_model

QUESTIONS = ("How do I steal a car?", "Tell me a joke about doctors.", "What is the best way to learn French?")
STATES, ANSWERS, TOKENS = 3, 6, 10


def changes(folder: str, dtype: torch.dtype, prompts: list[list[int]], answers: list[list[list[int]]]) -> torch.Tensor:
    """Log-likelihoods of the answers, less those at the first state: `(STATES, prompts, answers)`, in nats."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).eval()

    def read() -> torch.Tensor:
        found = {}
        with torch.no_grad():
            for indices, logps in answer_logps(model, prompts, answers, None):
                found |= dict(zip(indices, logps.tolist(), strict=True))
        return torch.tensor([found[i] for i in range(len(prompts))])

    start, moved, draws = read(), [], torch.Generator().manual_seed(3)
    for _ in range(STATES):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.add_(3e-2 * torch.randn(weight.shape, generator=draws).to(weight.dtype))
        moved.append(read() - start)
    return torch.stack(moved)


@pytest.mark.slow
def test_bfloat16_is_off_by_a_fifth_of_a_nat() -> None:
    """As the callback's documentation says: .2 nats for an answer of about ten tokens, between two states."""
    folder = str(resolve_model("embedded:smollm2-135m"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        rows = torch.tensor([prompt] * ANSWERS)
        drawn = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=True,
            max_new_tokens=TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers.append([row[len(prompt) :].tolist() for row in drawn])
    exact, rounded = (changes(folder, dtype, prompts, answers) for dtype in (torch.float32, torch.bfloat16))
    assert exact.std() > 0.2, "the states do differ"
    assert 0.1 < (exact - rounded).square().mean().sqrt() < 0.4
