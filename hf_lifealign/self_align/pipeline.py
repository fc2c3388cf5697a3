"""From written principles to data and an aligned model: the stages in order, each finished once."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hf_lifealign._files import sweep
from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.self_align.config import (
    CLONING,
    ENGRAVE,
    JUDGEMENTS,
    PROMPTS,
    REFINE,
    RESPONSES,
    REWARD,
    SelfAlignConfig,
)
from hf_lifealign.self_align.generators.cache import CallCache
from hf_lifealign.self_align.provenance import keep_record
from hf_lifealign.self_align.rendering import Prompts
from hf_lifealign.self_align.settings import CloningSettings, EngraveSettings, RLSettings
from hf_lifealign.self_align.stages.cloning import CloneStage, cloning_rows
from hf_lifealign.self_align.stages.outcome import GaveUpError, Outcome, Progress
from hf_lifealign.self_align.stages.prompts import PromptStage
from hf_lifealign.self_align.stages.responses import ResponseStage, preference_rows, training_rows
from hf_lifealign.self_align.store import DROPPED, StageStore, read_lines, write_lines
from hf_lifealign.strategies.sampling import seeded_generator, share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hf_lifealign.self_align.generators import Generator
    from hf_lifealign.self_align.reward_model import PrincipleReward
    from hf_lifealign.self_align.stages.judgements import Comparer
    from hf_lifealign.self_align.stages.reinforcement import ReinforcementStage
    from hf_lifealign.self_align.stages.reward import RewardStage

SFT, PREFERENCE = "sft", "preference"
SPLITS = ("train", "test")
# The stage whose rows a stage trains on.
_TRAINED_ON = {ENGRAVE: RESPONSES, REFINE: CLONING}


class SelfAlign:
    """
    Makes a task's data from written principles, and aligns a base with it (SELF-ALIGN, arXiv 2305.03047).

    Stages: `prompts` makes up tasks, `responses` answers them by the principles, `engrave` trains the base on the
    answers. Where `refine` is set to verbose cloning, `cloning` lets the engraved model answer at length, and `refine`
    trains the base on that; where it is set to rl (SALMON, arXiv 2310.05910), `judgements` lets the engraved model
    compare its own answers by each principle, `reward` trains a reward model on that, and `refine` reinforces the
    engraved model by it.

    Each leaves a folder that is whole or not there, and is not run again; a stage that was killed goes on from its kept
    calls, or its checkpoint, to the same result.

    Args:
        config ([`SelfAlignConfig`]): the settings.
        generator ([`Generator`], *optional*): who writes, in place of the one that is set.
        engraved_generator ([`Generator`], *optional*): who answers at length, or is compared, in place of the engraved
            model.
        callbacks (`list`, *optional*): of the trainers.
        disable_tqdm (`bool`): whether to show no bars.
        comparer ([`Comparer`], *optional*): who compares answers, in place of the engraved model; a stage that goes on
            knows it by its name.

    Example:

    ```python
    >>> from hf_lifealign import SelfAlign, SelfAlignConfig
    >>> run = SelfAlign(SelfAlignConfig("runs/self", model="HuggingFaceTB/SmolLM2-135M-Instruct", preset="compact"))
    >>> told = run.run()
    >>> told["responses"]["keep_rate"]
    ```
    """

    def __init__(
        self,
        config: SelfAlignConfig,
        generator: "Generator | None" = None,
        engraved_generator: "Generator | None" = None,
        callbacks: Sequence[Any] = (),
        disable_tqdm: bool = False,
        comparer: "Comparer | None" = None,
    ):
        self.config, self.callbacks, self.disable_tqdm = config, list(callbacks), disable_tqdm
        self.store = StageStore(Path(config.output_dir).expanduser())
        self.constitution = config.load_constitution()
        self.prompts = Prompts(self.constitution, config.preset)
        self._generator, self._engraved, self._comparer = generator, engraved_generator, comparer
        self._stand_ins = engraved_generator, comparer
        self._calls: CallCache | None = None
        self._tokenizer: Any = None

    # Who writes, and in which form

    @property
    def generator(self) -> "Generator":
        """Who writes; loaded when it is first needed."""
        if self._generator is None:
            self._generator = self.config.load_generator()
        return self._generator

    @property
    def calls(self) -> CallCache:
        """The generator with its kept calls."""
        if self._calls is None:
            self._calls = CallCache(self.generator, self.store.calls)
        return self._calls

    @property
    def engraved_generator(self) -> "Generator":
        """The engraved model, as one who writes."""
        if self._engraved is None:
            from peft import PeftModel

            import hf_lifealign.slmc  # noqa: F401  registers the type SLMC
            from hf_lifealign.self_align.generators import TransformersGenerator

            # in the form and at the place that are set for the one who writes, if that is a model on this machine
            own = self.config.generator.get("backend", "transformers") == "transformers"
            given = self.config.generator if own else {}
            options = {name: given[name] for name in ("batch_size", "dtype", "device") if name in given}
            base = TransformersGenerator(self.config.model, self.tokenizer, chat=self.form is None, **options)
            model: Any = PeftModel.from_pretrained(base.model, str(self.store.folder(ENGRAVE))).eval()
            self._engraved = TransformersGenerator(model, self.tokenizer, base.batch_size, chat=base.chat)
        return self._engraved

    @property
    def tokenizer(self) -> Any:
        """That of the base."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            from hf_lifealign.models import resolve_model

            self._tokenizer = AutoTokenizer.from_pretrained(resolve_model(self.config.model), trust_remote_code=False)
        return self._tokenizer

    @property
    def form(self) -> Prompts | None:
        """`None` where training rows are messages, else what makes plain texts of them."""
        given = self.config.conversational
        messages = bool(self.tokenizer.chat_template) if given is None else given
        return None if messages else self.prompts

    # Running

    def run(self, from_stage: str | None = None) -> dict[str, dict[str, Any]]:
        """Runs the stages that are not finished.

        Args:
            from_stage (`str`, *optional*): this one and all after it are made anew; kept calls are used.

        Returns:
            `dict`: what each stage told, by its name.

        Raises:
            ValueError: if a finished stage was made with other settings, or a stage has nothing to work on.
            GaveUpError: if a stage does not reach its target.
        """
        stages = self.config.stages
        if from_stage is not None:
            if from_stage not in stages:
                raise ValueError(f"You set the stage {from_stage!r}. This run has {list(stages)}.")
            self.store.forget(stages[stages.index(from_stage) :])
        sweep(self.store.root)
        self._refuse_wrong_training()
        made: dict[str, Callable[[dict[str, Any]], None]] = {
            PROMPTS: self._make_prompts, RESPONSES: self._respond, ENGRAVE: self._engrave, CLONING: self._clone,
            JUDGEMENTS: self._judge, REWARD: self._reward, REFINE: self._refine,
        }  # fmt: skip
        for stage in stages:
            made_of = self._made_of(stage)
            if not self.store.finished(stage, made_of):
                made[stage](made_of)
        keep_record(self)
        return {stage: self.store.manifest(stage)["told"] for stage in stages}

    def _made_of(self, stage: str) -> dict[str, Any]:
        """What decides what a stage comes to; every digest in it is of something that lies fixed by now."""
        told = self.config.decides(stage) | {"constitution": self.constitution.digest()}
        if stage in (PROMPTS, RESPONSES):
            told["generator"] = self.generator.identity()
        reinforced = stage == REFINE and isinstance(self.config.refine, RLSettings)
        if stage in (RESPONSES, CLONING, JUDGEMENTS) or reinforced:
            told |= {"prompts": rows_digest(self.store.rows(PROMPTS)), "messages": self.form is None}
        if stage in (CLONING, JUDGEMENTS):
            told["generator"] = self.engraved_generator.identity()
        if stage == JUDGEMENTS or reinforced:
            told["responses"] = rows_digest(self.store.rows(RESPONSES))  # by which it is known what is held out
        if stage == JUDGEMENTS:
            told["comparer"] = self._comparer_identity
        if stage == REWARD:
            judged = rows_digest(self.store.rows(JUDGEMENTS))
            told |= {"model": self.config.model, "judgements": judged, "messages": self.form is None}
        if reinforced:
            weights = {name: self.store.weights_digest(name) for name in (ENGRAVE, REWARD)}
            told |= {"model": self.config.model, "weights": weights}
        elif stage in (ENGRAVE, REFINE):
            rows = {split: rows_digest(self.data(SFT, split, _TRAINED_ON[stage])) for split in SPLITS}
            told |= {"model": self.config.model, "rows": rows}
        return told

    @contextmanager
    def _bar(self, stage: str) -> "Iterator[Progress]":
        """Shows accepted over target, and how long it will take."""
        with tqdm(desc=stage, disable=self.disable_tqdm, dynamic_ncols=True, unit="row", smoothing=0.1) as bar:

            def tell(accepted: int, target: int) -> None:
                bar.total = target
                bar.update(accepted - bar.n)

            yield tell

    def _make_prompts(self, made_of: dict[str, Any]) -> None:
        with self._bar(PROMPTS) as progress:
            stage = PromptStage(self.prompts, self.calls, self.config.prompts, self.config.seed, progress)
            try:
                outcome = stage.run()
            except GaveUpError as error:
                folder = self.store.work(PROMPTS)
                folder.mkdir(parents=True, exist_ok=True)
                write_lines(folder / DROPPED, error.outcome.dropped)
                error.add_note(f"The dropped texts lie in {folder / DROPPED}.")
                raise
        self.store.write(PROMPTS, outcome, made_of)

    def _respond(self, made_of: dict[str, Any]) -> None:
        with self._bar(RESPONSES) as progress:
            stage = ResponseStage(self.prompts, self.calls, self.config.responses, self.config.seed, progress)
            outcome = stage.run(self.store.rows(PROMPTS))
        self._refuse_too_few(outcome, outcome.told["reasons"])
        held_out = self._held_out(outcome)

        def fill(folder: Path) -> None:
            for name, make in ((SFT, training_rows), (PREFERENCE, preference_rows)):
                self._split(folder / name, held_out, outcome, partial(make, prompts=self.form))

        self.store.write(RESPONSES, outcome, made_of, fill)

    def _clone(self, made_of: dict[str, Any]) -> None:
        assert isinstance(self.config.refine, CloningSettings)
        messages = self.form is None
        calls = CallCache(self.engraved_generator, self.store.calls)
        with self._bar(CLONING) as progress:
            stage = CloneStage(self.prompts, calls, self.config.refine, messages, self.config.seed, progress)
            outcome = stage.run(self.store.rows(PROMPTS))
        self._refuse_too_few(outcome, outcome.reasons())
        held_out = self._held_out(outcome)

        def fill(folder: Path) -> None:
            make = partial(cloning_rows, prompts=self.prompts, messages=messages)
            self._split(folder / SFT, held_out, outcome, make)

        self.store.write(CLONING, outcome, made_of, fill)

    @staticmethod
    def _refuse_too_few(outcome: Outcome, reasons: dict[str, int]) -> None:
        if len(outcome.rows) < 2:
            raise ValueError(
                f"Of {outcome.told['asked']} tasks {len(outcome.rows)} have an answer that can be kept; dropped: "
                f"{reasons}. At least 2 are needed. Set another generator, or more prompts."
            )

    @staticmethod
    def _split(folder: Path, held_out: set[int], outcome: Outcome, make: Callable[..., list[dict[str, Any]]]) -> None:
        """Writes rows for TRL, those that are held out apart."""
        folder.mkdir()
        for split in SPLITS:
            rows = [row for i, row in enumerate(outcome.rows) if (i in held_out) == (split == "test")]
            write_lines(folder / f"{split}.jsonl", make(rows))

    def _held_out(self, outcome: Outcome) -> set[int]:
        """Numbers of rows that are not trained on: the same share of pairs, and of what is none."""
        draws = seeded_generator(self.config.seed, "held out")
        found: set[int] = set()
        for paired in (True, False):
            places = [i for i, row in enumerate(outcome.rows) if ("rejected" in row) == paired]
            found |= {int(i) for i in draws.permutation(places)[: share(len(places), self.config.held_out)]}
        return found if len(found) < len(outcome.rows) else found - {max(found)}

    def _engrave(self, made_of: dict[str, Any]) -> None:
        assert self.config.engrave is not None
        self._train(ENGRAVE, self.config.engrave, made_of)

    def _refine(self, made_of: dict[str, Any]) -> None:
        if isinstance(self.config.refine, RLSettings):
            return self._reinforce(self.config.refine, made_of)
        assert self.config.refine is not None
        return self._train(REFINE, self.config.refine, made_of)

    def _train(self, name: str, settings: EngraveSettings, made_of: dict[str, Any]) -> None:
        from hf_lifealign.self_align.stages.engrave import EngraveStage

        work, config = self.store.begin(name, made_of), self.config
        stage = EngraveStage(config.model, settings, work, config.seed, self.tokenizer, self.callbacks)
        outcome = stage.run(*(self.data(SFT, split, _TRAINED_ON[name]) for split in SPLITS))
        self.store.write(name, outcome, made_of, stage.save)
        stage.clear()

    # Refinement by reinforcement

    @property
    def comparer(self) -> "Comparer":
        """Who compares answers: the engraved model, by default, by the letters it finds likelier.

        Raises:
            ValueError: if others stand in for the engraved model, of whom nothing but texts can be had.
        """
        if self._comparer is None:
            from hf_lifealign.self_align.generators import TransformersGenerator
            from hf_lifealign.self_align.stages.judgements import LetterComparer

            engraved = self.engraved_generator
            if not isinstance(engraved, TransformersGenerator):
                raise ValueError(
                    f"You passed a {type(engraved).__name__} as engraved_generator, which cannot compare answers. Pass "
                    "comparer as well."
                )
            self._comparer = LetterComparer(engraved.model, engraved.tokenizer, engraved.batch_size)
        return self._comparer

    @property
    def _comparer_identity(self) -> str:
        from hf_lifealign.self_align.stages.judgements import LetterComparer

        if self._comparer is None or isinstance(self._comparer, LetterComparer):
            return self.engraved_generator.identity()
        return str(getattr(self._comparer, "__qualname__", type(self._comparer).__qualname__))

    def _parts(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Tasks that are trained on, and prompts of those whose answers the stage `engrave` held out."""
        rows = self.store.rows(RESPONSES)
        held_out = [rows[i]["prompt"] for i in sorted(self._held_out(Outcome(rows)))]
        known = set(held_out)
        return [row for row in self.store.rows(PROMPTS) if row["prompt"] not in known], held_out

    def _refuse_wrong_training(self) -> None:
        """Settings of trainers that come last are told before anything is generated."""
        if not isinstance(self.config.refine, RLSettings):
            return
        for stage in (self._reward_stage(), self._reinforcement_stage(None)):
            stage.training_arguments()

    def _judge(self, made_of: dict[str, Any]) -> None:
        from hf_lifealign.self_align.stages.judgements import JudgementStage, KeptComparer

        settings = self.config.refine
        assert isinstance(settings, RLSettings)
        calls = CallCache(self.engraved_generator, self.store.calls)
        compare = KeptComparer(self.comparer, self._comparer_identity, self.store.calls / "comparisons")
        with self._bar(JUDGEMENTS) as progress:
            stage = JudgementStage(
                self.prompts, calls, compare, self.form is None, settings.temperature, settings.top_p,
                settings.max_new_tokens, self.config.seed, progress,
            )  # fmt: skip
            outcome = stage.run(self._parts()[0])
        if len(outcome.rows) < 2:
            raise ValueError(
                f"Of {outcome.told['asked']} tasks {len(outcome.rows)} have two different answers that can be "
                f"compared; dropped: {outcome.reasons()}. At least 2 are needed. Set a higher refine.temperature, "
                "more refine.max_new_tokens, or more prompts."
            )
        self.store.write(JUDGEMENTS, outcome, made_of)

    def _reward(self, made_of: dict[str, Any]) -> None:
        from hf_lifealign.self_align.reward_rows import labelled_rows, reward_rows
        from hf_lifealign.self_align.stages.reward import refuse_inconsistent

        settings, config = self.config.refine, self.config
        assert isinstance(settings, RLSettings)
        self._engraved, self._comparer = self._stand_ins  # what was loaded for the judgements makes room
        judged = self.store.manifest(JUDGEMENTS)["told"]
        refuse_inconsistent(judged, settings.least_order_consistency)
        outcome = labelled_rows(
            self.store.rows(JUDGEMENTS), self.constitution.principles, config.seed, settings.principle_rate,
            settings.most_principles, settings.negation,
        )  # fmt: skip
        if len(outcome.rows) < 2:
            raise ValueError(
                f"Of {outcome.told['pairs']} pairs {len(outcome.rows)} have a label; dropped: {outcome.reasons()}. At "
                "least 2 are needed. Set more prompts, or a higher refine.most_principles."
            )
        held_out = self._held_out(outcome)
        parts = [[row for i, row in enumerate(outcome.rows) if (i in held_out) == test] for test in (False, True)]
        self.store.begin(REWARD, made_of)
        stage = self._reward_stage()
        outcome.told |= stage.run(*parts).told | {"order_consistency": judged["order_consistency"]}
        outcome.told["least_order_consistency"] = settings.least_order_consistency

        def fill(folder: Path) -> None:
            make = partial(reward_rows, prompts=self.prompts, messages=self.form is None)
            self._split(folder / PREFERENCE, held_out, outcome, make)
            stage.save(folder)

        self.store.write(REWARD, outcome, made_of, fill)
        stage.clear()

    def _reward_stage(self) -> "RewardStage":
        from hf_lifealign.self_align.stages.reward import RewardStage

        config = self.config
        assert isinstance(config.refine, RLSettings)
        return RewardStage(
            config.model, config.refine, self.store.work(REWARD), self.prompts, self.form is None, config.seed,
            self.tokenizer, self.callbacks,
        )  # fmt: skip

    def _reinforce(self, settings: RLSettings, made_of: dict[str, Any]) -> None:
        from hf_lifealign.self_align.reward_model import PrincipleReward, RewardScorer, load_reward_model

        self.store.begin(REFINE, made_of)
        model = load_reward_model(self.config.model, self.store.folder(REWARD))
        stage = self._reinforcement_stage(PrincipleReward(RewardScorer(model, self.tokenizer), self.prompts))
        tasks, held_out = self._parts()
        outcome = stage.run([task["prompt"] for task in tasks], held_out, self.data(SFT, "test"))
        self.store.write(REFINE, outcome, made_of, stage.save)
        stage.clear()

    def _reinforcement_stage(self, reward: "PrincipleReward | None") -> "ReinforcementStage":
        from hf_lifealign.self_align.stages.reinforcement import ReinforcementStage

        config = self.config
        assert isinstance(config.refine, RLSettings)
        return ReinforcementStage(
            config.model, config.refine, self.store.work(REFINE), self.store.folder(ENGRAVE), reward, self.prompts,
            self.form is None, config.seed, self.tokenizer, self.callbacks,
        )  # fmt: skip

    # What came of it

    def data(self, kind: str, split: str, stage: str = RESPONSES) -> list[dict[str, Any]]:
        """Rows that TRL trains on: `"sft"` or `"preference"`, `"train"` or `"test"`, of the stage `responses` or
        `cloning`."""
        return read_lines(self.store.folder(stage) / kind / f"{split}.jsonl")
