"""The Cost type: what one forward pass over one sequence takes, counted exactly.

Words: a *live* pair is a (query, key) pair that the pattern keeps; a *visited* pair is one whose score is computed,
live or not. A multiply-add counts as two FLOPs, as in ``torch.utils.flop_counter``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

# The backward pass of a matmul is two matmuls of the same size (one a gradient), so a step is three forwards.
TRAINING_MULTIPLE = 3


@dataclass(frozen=True)
class Cost:
    """Cost of one sequence, forward only. Costs of parts add; see :meth:`training` for a whole training step.

    Attributes:
        live_pairs: pairs that patterns keep, summed over heads (and layers, once layers are added up).
        visited_pairs: pairs whose scores are computed, summed likewise.
        attention_flops_live: FLOPs of the score and value matmuls on live pairs alone, 4 * head width a pair.
        attention_flops: the same on visited pairs, which is what runs.
        other_flops: FLOPs of the matmuls outside attention (projections, MLP, heads).
        parameters: trainable and frozen parameters, shared ones once.
        state_bytes: what decoding holds of a sequence of this length: states in float32; keys and values in two bytes a number.
    """

    live_pairs: int = 0
    visited_pairs: int = 0
    attention_flops_live: int = 0
    attention_flops: int = 0
    other_flops: int = 0
    parameters: int = 0
    state_bytes: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or int(value) != value or value < 0:
                raise ValueError(f"Cost.{field.name} must be a whole number, 0 or more; got {value!r}")
            object.__setattr__(self, field.name, int(value))

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __radd__(self, other: object) -> Cost:
        if other == 0:  # so that sum() needs no start value
            return self
        return NotImplemented

    @property
    def total_flops(self) -> int:
        """FLOPs that run: visited pairs plus everything else."""
        return self.attention_flops + self.other_flops

    @property
    def total_flops_live(self) -> int:
        """FLOPs that a kernel without waste would run."""
        return self.attention_flops_live + self.other_flops

    @property
    def waste(self) -> float:
        """Visited over live pairs; 1.0 where nothing is live (nothing is wasted either)."""
        return self.visited_pairs / self.live_pairs if self.live_pairs else 1.0

    def density(self, length: int, heads: int = 1, layers: float = 1) -> float | None:
        """Live pairs over the pairs of full two-way attention at this length; None for what mixes tokens without pairs."""
        if not self.live_pairs and not self.visited_pairs and self.attention_flops:
            return None
        return self.live_pairs / (heads * layers * length * length) if length else 0.0

    def training(self) -> Cost:
        """The same for a training step: FLOPs of the backward are twice the forward's. Pairs and parameters stay."""
        return dataclasses.replace(
            self,
            attention_flops_live=TRAINING_MULTIPLE * self.attention_flops_live,
            attention_flops=TRAINING_MULTIPLE * self.attention_flops,
            other_flops=TRAINING_MULTIPLE * self.other_flops,
        )

    def as_dict(self) -> dict[str, int]:
        """Plain numbers for logs and records, the two totals included."""
        return {**dataclasses.asdict(self), "total_flops": self.total_flops, "total_flops_live": self.total_flops_live}
