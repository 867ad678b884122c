"""A trained model in a program: predictions, scores and text, without a config on a command line and without a Trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.config.errors import ConfigError
from longspan.data.base import SequenceDataModule
from longspan.data.vocabularies import Vocabulary
from longspan.inference.generate import Sampling, StreamedText, generate
from longspan.inference.prediction_files import Row, rows_for
from longspan.models.heads import HeadedModel
from longspan.models.search import StreamedTarget
from longspan.tasks import LanguageModelling, MaskedModelling, SequenceToSequence, Task

USUAL = 200  # tokens that are added unless a number is given


class TrainedModel:
    """What `longspan.load` returns.

    Attributes:
        model: backbone and head, an nn.Module in evaluation mode: tokens [B, T] to logits.
        task: the task around it, with what it takes to make predictions of logits.
        config: the run's config, as plain containers.
        vocabulary: between text and tokens.
        classes: names of the classes, in the order of their numbers; None where there are none.
        record: the run's record as plain containers, where its folder has one.
    """

    record: Mapping[str, Any] | None = None

    def __init__(self, task: Task, config: Mapping[str, Any], facts: Mapping[str, Any], data: SequenceDataModule) -> None:
        self.task, self.config, self.facts, self._data = task.eval(), dict(config), dict(facts), data
        self.model: HeadedModel = task.model

    @property
    def vocabulary(self) -> Vocabulary:
        return self._data.vocabulary

    @property
    def vocabularies(self) -> dict[str, Any]:
        """Plain values of the vocabularies that no name brings back, as checkpoints keep them."""
        return self._data.stored_vocabularies()

    @property
    def classes(self) -> list[str] | None:
        names = getattr(self.task, "class_names", None)
        return None if names is None else list(names)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> TrainedModel:
        """Moves the model; returns itself."""
        self.task.to(device)
        return self

    def predict(self, sequences: Sequence[str | bytes], *, names: Sequence[str] | None = None) -> list[Row]:
        """The rows that `scripts/predict.py` writes: of a classifier one a sequence with its label and the probability of each
        class, of a labelling model one a run of equal labels, of a language model one a sequence with the bits it costs.

        Args:
            sequences: texts, or bytes of them.
            names: the rows' ids; without them sequences are numbered from 0.

        Raises:
            ConfigError: an empty sequence, or a character outside the vocabulary.
        """
        return list(self._rows(sequences, names))

    def score(self, sequences: Sequence[str | bytes], *, names: Sequence[str] | None = None) -> list[Row]:
        """For language models: `tokens`, `bits` and `bits_per_token` of each sequence.

        Raises:
            TypeError: the model is no language model.
        """
        if not isinstance(self.task, (LanguageModelling, MaskedModelling)):
            raise TypeError(f"score: this model does {type(self.task).__name__}, it is no language model; use predict")
        return self.predict(sequences, names=names)

    def generate(
        self,
        prompts: Sequence[str | bytes],
        max_new_tokens: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """What a language model writes after each prompt, the prompt left out; of an encoder-decoder the target of each source.

        A prompt's text depends on its place and the seed, not on the others.

        Args:
            prompts: texts of any lengths; each is the beginning of a document, as in training and in the tokenizer that
                `save_pretrained` writes, and the <bos> before it is one of the model's tokens.
            max_new_tokens: tokens to add; the end-of-sequence token ends a text before that. None: 200, or what the model was
                built for leaves after the longest prompt.
            temperature, top_k, top_p, seed: see `longspan.inference.generate.Sampling`.

        Raises:
            TypeError: the model is no language model.
            ConfigError: a setting that cannot work, or more tokens than the model was built for.
        """
        if isinstance(self.task, SequenceToSequence):
            self._check_search(Sampling(temperature, top_k, top_p, seed))
            return [row["prediction"] for row in self._targets(prompts, max_new_tokens)]
        found: list[list[int]] = [[] for _ in prompts]
        for step in self._tokens(prompts, max_new_tokens, Sampling(temperature, top_k, top_p, seed)):
            for row, token in zip(found, step, strict=True):
                row += [] if token is None else [token]
        return [self.vocabulary.decode(row) for row in found]

    def stream(
        self,
        prompt: str | bytes,
        max_new_tokens: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """As `generate` of one prompt, piece by piece as it is chosen."""
        if isinstance(self.task, SequenceToSequence):
            self._check_search(Sampling(temperature, top_k, top_p, seed))
            yield from (row["prediction"] for row in self._targets([prompt], max_new_tokens))
            return
        text = StreamedText(self.vocabulary)
        for (token,) in self._tokens([prompt], max_new_tokens, Sampling(temperature, top_k, top_p, seed)):
            yield text.add(token)
        yield text.end()

    def _check_search(self, sampling: Sampling) -> None:
        """Raises ConfigError for settings of draws: targets are searched for, never drawn."""
        for key, usual in (("temperature", (0.0, 1.0)), ("top_k", (None,)), ("top_p", (None,)), ("seed", (0,))):
            value = getattr(sampling, key)
            if value not in usual:
                raise ConfigError(
                    f"{key}={value}: an encoder-decoder searches for the likeliest target and draws nothing; leave {key} out"
                )

    def _targets(self, sources: Sequence[str | bytes], most: int | None) -> list[Row]:
        task: Any = self.task
        kept = task.beam
        task.beam = dataclasses.replace(kept, most=USUAL if most is None else most)
        try:
            return self.predict(sources)
        finally:
            task.beam = kept

    def translate_stream(self, pieces: Iterable[str | bytes]) -> Iterator[str]:
        """The target of a source that comes in pieces, each part as soon as the model's policy writes it.

        Tokens are made of each piece alone, so cut between words where tokens are subwords.

        Raises:
            ValueError: the model was not trained with a streaming `model.cross_attention` (`wait_k:3`, `chunks:8`).
        """
        task: Any = self.task
        if not isinstance(task, SequenceToSequence):
            raise TypeError(f"translate_stream: this model does {type(task).__name__}; it takes task=sequence_to_sequence")
        task.eval()
        known = self._data.target_vocabulary  # type: ignore[attr-defined]
        stream = StreamedTarget(self.model, bos=task.bos_id, eos=task.eos_id, forbidden=task.special_ids)
        text = StreamedText(known)
        for piece in pieces:
            yield "".join(text.add(token) for token in stream.read(self.vocabulary.encode(piece)))
        yield "".join(text.add(token) for token in stream.end()) + text.end()

    def _tokens(self, prompts: Sequence[str | bytes], count: int | None, sampling: Sampling) -> Iterator[list[int | None]]:
        if not isinstance(self.task, LanguageModelling):
            raise TypeError(f"generate: this model does {type(self.task).__name__}; it takes task=language_modelling")
        if isinstance(prompts, (str, bytes)):
            raise TypeError("prompts is one text; give a list of them")
        self.task.eval()
        known = self.vocabulary
        tokens = [[known.bos_id, *known.encode(prompt)] for prompt in prompts]  # a document begins so in training too
        if count is None:
            left = self.model.backbone.max_length - max(map(len, tokens), default=0)
            count = min(USUAL, max(1, left))  # where nothing is left, `generate` says so
        return generate(
            self.model,
            tokens,
            count,
            sampling,
            stop_tokens=[known.eos_id],
            forbidden=[id for id in known.special_ids if id != known.eos_id],
        )

    @torch.inference_mode()
    def _rows(self, sequences: Sequence[str | bytes], names: Sequence[str] | None) -> Iterator[Row]:
        rows = rows_for(self.task)
        self.task.eval()
        for index, batch in enumerate(self._data.given_dataloader(sequences, names)):
            moved = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            yield from rows.add(self.task.predict_step(moved, index))
        yield from rows.end()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes `config.json`, `model.safetensors`, a tokenizer and a model card made from the run's record.

        `longspan.load(folder)` reads it again; after `longspan.integrations.huggingface.register()`, so do transformers' Auto
        classes and pipelines.

        Returns:
            The folder.
        """
        from longspan.inference.pretrained import save

        return save(self, Path(folder))

    def save_transformers(self, folder: str | Path) -> Path:
        """Writes a model of `model=huggingface` as transformers' own: the network with the weights it has now, a tokenizer and
        a model card. `AutoModelForCausalLM.from_pretrained(folder)` reads it, where this project is not installed too.

        The folder's model attends as it did before the run, unless it is loaded with `attn_implementation=`: the model card
        gives the words where one pattern says what all layers do. Parameters of an attention variant stay behind.

        Returns:
            The folder.

        Raises:
            TypeError: the model is not of `model=huggingface`, or not a language model.
        """
        from longspan.inference.pretrained import save_network

        return save_network(self, Path(folder))

    def __repr__(self) -> str:
        attention, count = self.config.get("attention_name"), sum(p.numel() for p in self.model.parameters())
        return f"TrainedModel({type(self.task).__name__}, attention={attention}, {count:,} parameters, {self.device})"
