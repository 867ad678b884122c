"""Questions within a sequence: at each the token that answers it, from what stands before.

Legend: B batch, T tokens, N tokens of a batch, A answers due in it, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection

from longspan.config.errors import CallError, wrong_value
from longspan.models import LanguageModellingHead, Transformer
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.breakdown import BREAKDOWN
from longspan.tasks.losses import IGNORED, token_losses, token_predictions, weighted_mean
from longspan.tasks.metrics import Share, ShareByDistance


class Recall(Task):
    """The answer to each question as a token of the vocabulary: accuracy over all answers that are due.

    Args:
        model: a decoder where `causal`, else an encoder.
        causal: which of them; the decoder's task is next-token prediction that only counts where an answer is due.
        tied: whether the head shares the embedding's weights.

    Batches: ``tokens`` [B, T], ``labels`` [B, T] token ids, -100 where no answer is due, optional ``lengths`` [B], and
    optional ``distances`` [B, T], how far back each answer stands: then the record has ``accuracy_by_distance``.
    """

    causal = True

    def __init__(
        self,
        model: Transformer,
        *,
        causal: bool = True,
        tied: bool = False,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        if causal != model.causal:
            raise wrong_value("task.causal", causal, f"the model is a {type(model).__name__}; give {model.causal}")
        self.causal = causal
        self.primary_metric = "accuracy"
        self.metrics_info = {"accuracy": True}
        super().__init__(
            model,
            LanguageModellingHead(model, tied=tied),
            {
                "answers": MetricCollection({"accuracy": Share()}),
                BREAKDOWN: MetricCollection({"accuracy_by_distance": ShareByDistance()}),
            },
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={"causal": causal, "tied": tied},
        )

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        return {}

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        labels = self.entry(batch, "labels")
        if labels.shape != batch["tokens"].shape:
            raise CallError(f"labels must be [B, T] = {list(batch['tokens'].shape)}; got {list(labels.shape)}")
        due = labels != IGNORED  # (B, T)
        hidden, answers = self.hidden(batch)[due], labels[due]  # (A, C), (A,)
        losses = token_losses(self.model.head, hidden, answers, classes=self.model.vocab_size)
        loss, count = weighted_mean(losses, answers)
        if stage == "train":
            return Step(loss, count, {})
        given, _ = token_predictions(self.model.head, hidden, classes=self.model.vocab_size)
        right = given == answers  # (A,)
        updates: dict[str, tuple[Tensor, ...]] = {"answers": (right.sum(), count)}
        if "distances" in batch:
            updates[BREAKDOWN] = (right, batch["distances"][due])
        return Step(loss, count, updates)
