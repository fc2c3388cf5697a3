"""ClassifierJudge, against the model called by hand, one text at a time and without padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import save_tiny, tiny_tokenizer
from support.tiny_encoder import save_tiny_encoder
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from hf_lifealign import ClassifierJudge
from hf_lifealign.judges import judged

PROMPTS = ["how?", "why?", "when?", "who?", "what?", "?"]
ANSWERS = ["because", "it is so, and it was so, and it will be", "no", "", "y" * 300, "once upon a time"]
LABELS = {0: "bad", 1: "good", 2: "odd"}
SMALL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
    "id2label": LABELS,
    "label2id": {name: index for index, name in LABELS.items()},
}


def save_classifier(folder: Path, **overrides: Any) -> str:
    """Writes a random BERT with three labels and its tokenizer to `folder`."""
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**{**SMALL, "pad_token_id": 0, **overrides})).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("models") / "tiny-classifier")


def logits_by_hand(folder: str, ids: list[int]) -> torch.Tensor:
    """Logits of one text, of shape `(labels,)`; an empty one is a padding token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = 0
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids or [0]])).logits[0].double()


def tokens(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"][:128]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_probability_of_a_label(classifier_dir: str, batch_size: int) -> None:
    judge = ClassifierJudge(classifier_dir, "good", threshold=None, batch_size=batch_size)
    expected = [float(logits_by_hand(classifier_dir, tokens(answer)).softmax(-1)[1]) for answer in ANSWERS]
    assert max(expected) - min(expected) > 0.1, "else any order would do"
    assert judged(judge, PROMPTS, ANSWERS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert judge(PROMPTS, ANSWERS, ANSWERS) == judge(PROMPTS, ANSWERS, ANSWERS), "no dropout"


def test_thresholds_and_labels_that_are_not_wanted(classifier_dir: str) -> None:
    probabilities = ClassifierJudge(classifier_dir, "good", threshold=None)(PROMPTS, ANSWERS, ANSWERS)
    middle = sorted(probabilities)[3]
    expected = [float(value >= middle) for value in probabilities]
    assert expected.count(1.0) == 3
    assert ClassifierJudge(classifier_dir, "good", threshold=middle)(PROMPTS, ANSWERS, ANSWERS) == expected
    unwanted = ClassifierJudge(classifier_dir, "good", threshold=middle, aligned=False)
    assert unwanted(PROMPTS, ANSWERS, ANSWERS) == [1 - value for value in expected]
    unwanted = ClassifierJudge(classifier_dir, "good", threshold=None, aligned=False)
    assert judged(unwanted, PROMPTS, ANSWERS, ANSWERS) == pytest.approx([1 - value for value in probabilities])


def test_prompt_and_answer_as_a_pair(classifier_dir: str) -> None:
    judge = ClassifierJudge(classifier_dir, "good", threshold=None, with_prompt=True)
    found = judge(PROMPTS[:3], ANSWERS[:3], ANSWERS[:3])
    pairs = [tokens(p) + tokens(a) for p, a in zip(PROMPTS[:3], ANSWERS[:3], strict=True)]
    expected = [float(logits_by_hand(classifier_dir, pair).softmax(-1)[1]) for pair in pairs]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found != pytest.approx(ClassifierJudge(classifier_dir, "good", threshold=None)(PROMPTS, ANSWERS, [])[:3])
    assert len(judge(["p" * 300], ["a" * 300], [""])) == 1, "too long a pair is cut"


def test_of_a_long_answer_the_beginning_is_read(classifier_dir: str) -> None:
    judge = ClassifierJudge(classifier_dir, "good", threshold=None, max_length=5)
    expected = float(logits_by_hand(classifier_dir, tokens("abcde")).softmax(-1)[1])
    assert judge(["?"], ["abcdefgh"], [""]) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("kind", [{"problem_type": "multi_label_classification"}, {"id2label": {0: "good"}}])
def test_labels_that_do_not_exclude_each_other_have_a_sigmoid(tmp_path: Path, kind: dict[str, Any]) -> None:
    label2id = {name: index for index, name in kind.get("id2label", LABELS).items()}
    folder = save_classifier(tmp_path / "c", **{**kind, "label2id": label2id})
    found = ClassifierJudge(folder, "good", threshold=None)(PROMPTS, ANSWERS, ANSWERS)
    at = label2id["good"]
    expected = [float(logits_by_hand(folder, tokens(answer)).sigmoid()[at]) for answer in ANSWERS]
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 0.1


def test_a_classifier_on_a_decoder_reads_the_last_token_and_not_the_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=None, eos_token_id=1, bos_token_id=None)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None  # so that it has to be taken from the end of text
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    expected = []
    for answer in ANSWERS:
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([tokens(answer) or [1]])).last_hidden_state[0, -1]
            expected.append(float(model.score(hidden).double().softmax(-1)[1]))
    found = ClassifierJudge(str(tmp_path), "good", threshold=None)(PROMPTS, ANSWERS, ANSWERS)
    assert found == pytest.approx(expected, abs=1e-5)


def test_it_is_loaded_once_when_it_is_needed_and_leaves_chance_alone(classifier_dir: str, monkeypatch) -> None:
    loads: list[str] = []
    load = AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda name, **kwargs: (loads.append(name), load(name, **kwargs))[1],
    )
    judge = ClassifierJudge(classifier_dir, "good")
    assert judge([], [], []) == []
    assert loads == []
    before = torch.get_rng_state()
    judged(judge, PROMPTS, ANSWERS, ANSWERS, timeout=300)
    judge.load()
    judge(PROMPTS, ANSWERS, ANSWERS)
    assert loads == [classifier_dir]
    assert torch.equal(torch.get_rng_state(), before), "a run would go on otherwise than without its judge"
    model = judge._loaded[0]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_label_that_it_does_not_have(classifier_dir: str) -> None:
    with pytest.raises(ValueError, match=r"label='great'.*\['bad', 'good', 'odd'\]"):
        ClassifierJudge(classifier_dir, "great").load()


def test_models_that_cannot_judge(tmp_path: Path, classifier_dir: str) -> None:
    with pytest.raises(ValueError, match=r"has no weights for classifier\.bias, classifier\.weight.*at random"):
        ClassifierJudge(save_tiny_encoder(tmp_path / "encoder"), "LABEL_0").load()
    with pytest.raises(ValueError, match=r"no weights for score\.weight"):
        ClassifierJudge(save_tiny(tmp_path / "llama"), "LABEL_0").load()
    regression = save_classifier(tmp_path / "regression", problem_type="regression")
    with pytest.raises(ValueError, match="regression"):
        ClassifierJudge(regression, "good").load()
    with pytest.raises(ValueError, match=r"'/no/where' at the revision 'v2', which cannot be loaded"):
        ClassifierJudge("/no/where", "good", revision="v2").load()
    pickled = Path(save_classifier(tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="other weights are not read"):
        ClassifierJudge(str(pickled), "good").load()


def test_nan_is_no_judgement(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "broken")
    model = BertForSequenceClassification.from_pretrained(folder)
    model.classifier.bias.data.fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"gave nan for answer 0\. Look for NaN"):
        ClassifierJudge(folder, "good")(PROMPTS, ANSWERS, ANSWERS)


@pytest.mark.parametrize(
    "options",
    [
        {"label": ""},
        {"label": 1},
        {"batch_size": 0},
        {"max_length": 2.5},
        {"threshold": 0},
        {"threshold": 1.0},
        {"threshold": float("nan")},
        {"threshold": "0.5"},
    ],
    ids=str,
)
def test_settings_that_cannot_be(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"You set {name}="):
        ClassifierJudge("a/b", **{"label": "good", **options})
