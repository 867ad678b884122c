"""Predictions averaged over a sequence of DNA and its reverse complement.

Legend: B batch, T tokens, N tokens of a batch, C model width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longspan.config.errors import wrong_value
from longspan.models import OtherStrand


class AveragesStrands:
    """A task that reads sequences from either strand outside training, where `average_strands` says so, and takes the mean.

    What the other strand is, `attach` learns from the data module's vocabulary.
    """

    average_strands: bool = False

    def attach(self: Any, data: Any) -> None:
        """Takes the vocabulary's complement.

        Raises:
            ConfigError: strands are to be averaged, and the vocabulary has one alone.
        """
        super().attach(data)  # type: ignore[misc]
        vocabulary: Any = getattr(data, "vocabulary", None)
        complement = getattr(vocabulary, "complement", None)
        if complement is not None:
            # weights may lie on a device already: attach is called again for other data
            self.other_strand = OtherStrand(complement.tolist(), int(vocabulary.bos_id)).to(self.device)
        elif self.average_strands:
            name = getattr(vocabulary, "name", type(data).__name__)
            fix = f"{name} have no other strand; set data.vocabulary=nucleotides, or false"
            raise wrong_value("task.average_strands", True, fix)

    def over_strands(self: Any) -> OtherStrand | None:
        """The other strand where this pass is to read it too, else None.

        Raises:
            ConfigError: the task knows no vocabulary.
        """
        if self.training or not self.average_strands:
            return None
        strand = getattr(self, "other_strand", None)
        if strand is None:
            fix = "the task knows no complement of its tokens; call task.attach(data) with the data module, or set it false"
            raise wrong_value("task.average_strands", True, fix)
        return strand

    def logits_over_strands(
        self, batch: Any, read: Callable[[Any], Tensor], mean: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """What `read` makes of the batch [B, K]; over strands, the `mean` of that and of what it makes of the other strand."""
        strand = self.over_strands()
        this = read(batch)
        if strand is None:
            return this
        tokens = batch["tokens"]
        turned = strand(tokens, strand.order(tokens, batch.get("lengths"), batch.get("segments")))
        return mean(this, read({**batch, "tokens": turned}))


def mean_of_classes(this: Tensor, other: Tensor) -> Tensor:
    """Logits [..., K] whose softmax is the mean of two softmaxes."""
    return torch.logaddexp(F.log_softmax(this, -1), F.log_softmax(other, -1)) - math.log(2)


def mean_of_labels(this: Tensor, other: Tensor) -> Tensor:
    """Logits [..., K] whose sigmoid is the mean of two sigmoids."""
    yes = torch.logaddexp(F.logsigmoid(this), F.logsigmoid(other))
    return yes - torch.logaddexp(F.logsigmoid(-this), F.logsigmoid(-other))


def label_swap(class_names: Sequence[str]) -> list[int] | None:
    """[K], the label on the other strand of each: "gene on +" and "gene on -" change places; None where none has a strand."""
    place = {name: number for number, name in enumerate(class_names)}
    turned = {"+": "-", "-": "+"}
    swap = [place.get(name[:-1] + turned.get(name[-1:], name[-1:]), number) for name, number in place.items()]
    return None if swap == list(range(len(swap))) else swap
