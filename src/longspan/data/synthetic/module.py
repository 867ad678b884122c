"""The base of synthetic data modules: endless training data, fixed held-out sets, chance scores, and a description.

Legend: B sequences a device, T = `max_length`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines
from longspan.data.loader import TrainSampler
from longspan.data.splits import SPLITS
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import Examples, StreamSampler, SyntheticDataset, stack
from longspan.data.synthetic.symbols import SymbolVocabulary
from longspan.data.values import Loading, gathered
from longspan.data.vocabularies import SPECIALS

# the held-out sets are the same whatever `seed` is, so that runs of several seeds are compared on the same questions
HELD_OUT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many sequences there are, how long and how they are dealt out; see `Loading`.

    `epoch_windows`: where training data is endless, the sequences of what is called an epoch.
    """

    batch_size: int = 32
    max_length: int = 256
    seed: int = 0
    epoch_windows: int = 16384
    max_train_windows: int | None = None
    max_validation_windows: int = 256
    max_test_windows: int = 512
    num_workers: int = 0


class SyntheticDataModule(SequenceDataModule):
    """{"tokens", "labels", "distances"}, [B, T] int64 each: sequences with questions, made as they are needed.

    A label is the token that answers the question at its position, -100 where nothing is asked; no answer stands at or
    after its question, so that a decoder and an encoder have the same task. A distance is how many positions before
    its question the answer stands.

    Training never sees a sequence twice: each is a function of (seed, its number), and the numbers go on from epoch
    to epoch, `epoch_windows` in each, also after a resume. With `max_train_windows` there are only so many sequences,
    over and over. The held-out sets have streams of random bits of their own.
    """

    tasks: ClassVar[tuple[str, ...]] = ("recall", "token_labelling")
    diagnostic: ClassVar[str]
    paper: ClassVar[str]
    sizes: ClassVar[Sizes] = Sizes()  # the defaults; their fields are keywords of every diagnostic

    def __init__(
        self,
        symbols: SymbolVocabulary,
        answers: str,
        **sizes: Any,
    ):
        sizes = asdict(gathered(self, sizes, self.sizes)[0])
        self.epoch_windows = settings.whole("epoch_windows", sizes.pop("epoch_windows"), 1)
        for split in ("validation", "test"):
            settings.whole(f"max_{split}_windows", sizes[f"max_{split}_windows"], 1)
        loading = Loading(**sizes)
        super().__init__(symbols, loading)
        self.symbols = symbols
        self.answers = symbols.kinds[answers]
        self.num_classes = symbols.size
        self.class_names = [*symbols.names, *SPECIALS]

    @abstractmethod
    def make(self, draws: Draws) -> Examples:
        """The sequences that the draws belong to, and their questions."""

    @property
    @abstractmethod
    def to_record(self) -> dict[str, Any]:
        """Settings that make the diagnostic what it is, for the run record."""

    @property
    @abstractmethod
    def guess(self) -> float:
        """Accuracy of answering with a symbol that stands at one of the sequence's answers, whichever."""

    def _load(self) -> dict[str, SyntheticDataset]:
        sizes = {**self.limits, "train": self.limits["train"] or self.epoch_windows}
        return {
            split: SyntheticDataset(
                self.make, seed=self.seed if split == "train" else HELD_OUT_SEED, split=split, size=int(sizes[split] or 0)
            )
            for split in SPLITS
        }

    def _load_predict(self) -> Dataset:
        raise wrong_value("data._target_", type(self).__name__, "its sequences are made, not read: there is nothing to predict")

    def _train_sampler(self, data: Dataset, rank: int, world: int) -> TrainSampler:
        kind = StreamSampler if self.limits["train"] is None else TrainSampler
        return kind(data, self.seed, rank, world)

    def _options(self, names: bool = False) -> dict[str, Any]:
        return {**super()._options(), "collate_fn": stack}

    def fillers(self, draws: Draws) -> np.ndarray:
        """Sequences [B, T] of fillers alone, of the kind "f"."""
        return self.symbols.first["f"] + draws.below(self.symbols.kinds["f"], self.max_length)

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of always giving the same answer; "accuracy_guess": of giving one of those that the sequence holds."""
        self.split(split)  # an unknown split is refused, as by other data
        evenly = np.ones(self.answers)
        return {**class_baselines(evenly, evenly), "accuracy_guess": self.guess}

    def describe(self) -> dict[str, Any]:
        """The diagnostic, its settings, and the size of each split."""
        finite = self.limits["train"]
        return {
            "source": f"made: {self.diagnostic}",
            "paper": self.paper,
            "max_length": self.max_length,
            "symbols": dict(self.symbols.kinds),
            **self.to_record,
            "train": {"windows": finite if finite is not None else "endless, each seen once", "seed": self.seed},
            "validation": {"windows": self.limits["validation"], "seed": HELD_OUT_SEED},
            "test": {"windows": self.limits["test"], "seed": HELD_OUT_SEED},
        }
