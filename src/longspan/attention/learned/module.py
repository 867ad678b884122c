"""Attention over connections that each head learns.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, G gates a head.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from longspan.attention.base import Lengths, PatternAttention, visited_pairs
from longspan.attention.errors import not_flash, not_meta, wrong_setting
from longspan.attention.key_cache import KeyCache
from longspan.attention.learned import hard_concrete as gate
from longspan.attention.learned.budget import Schedule, chosen_gates
from longspan.attention.learned.candidates import Candidates
from longspan.attention.learned.patterns import OpenBlocks, open_blocks, open_residues, plain_pattern
from longspan.attention.weights import ShowsWeights
from longspan.cost import Cost
from longspan.functional import sparse_attention
from longspan.patterns import Full, Pattern
from longspan_kernels.selected import merge_by_lse

STEP, MULTIPLIER, EXCESS, TARGET, HARD = range(5)  # places in the buffer `state`
DAMPING = 30.0  # answers the excess itself, beside its sum over time, so that the density settles
# Adam's steps are as long as its rate, and most of them undo each other: in 300 steps of bytes, gates that could go 36
# while the target fell ended in windows and a few far offsets, gates that could go 6 had hardly moved.
TRAVEL, FASTEST = 36.0, 0.5
CERTAIN = 0.05  # a gate less likely to be open than this is not kept, though there be room


class LearnedAttention(ShowsWeights):
    """Every pair of positions has one gate in each head; training closes most of them (arXiv:1712.01312).

    A gate's log is added to the scores of its pairs, one number a block, inside the sparse kernel. Blocks of closed gates
    are not visited, so that a step costs less as gates close. Whoever trains calls `begin_step` before each step and adds
    `auxiliary_loss` to the loss; without `begin_step` gates are used as they are, without noise. `harden` turns them into
    a plain pattern. Its settings and their defaults are those of `learned`.

    Args:
        candidates: what the gates stand for.
        density: live pairs over T * T at the longest length, which the hardened pattern does not exceed.
        schedule: when the target falls, and when gates harden.
        heads, kv_heads, head_dim, dropout, backend: as in `PatternAttention`.
        update_every: steps between looks at which gates are open; each new set of open blocks compiles a layout.
        closed_below: a gate less likely to be open than this is closed in training, as far as the density is above its
            target. Evaluation closes below 0.31. Nothing but its expected L0 norm moves it then, so that it stays closed.
        open_at_most: pairs of the open gates over those aimed at, at most, each time it is looked at which gates are open:
            the likeliest stay open.
        gate_learning_rate: of the gates, in place of the optimizer's; schedules scale it alike. None: as fast as the
            target falls.
        multiplier_rate: how fast the Lagrange multiplier follows a density that is off its target: what a whole run
            spent at an excess of 1 would add to it.
        seed, layer: of the noise, which is the same on every rank and after a resume.

    Raises:
        ConfigError: a setting that cannot work, by its config key.
    """

    open: Tensor
    state: Tensor
    meaning: Tensor
    share: Tensor
    cost_changes = True  # cost(length) is of the gates that are open now

    def __init__(
        self,
        candidates: Candidates,
        *,
        density: float,
        schedule: Schedule,
        heads: int,
        head_dim: int,
        kv_heads: int | None,
        dropout: float,
        backend: str,
        update_every: int,
        closed_below: float,
        open_at_most: float,
        gate_learning_rate: float | None,
        multiplier_rate: float,
        seed: int,
        layer: int,
    ) -> None:
        super().__init__()
        self.candidates, self.schedule, self.density_wanted = candidates, schedule, float(density)
        self.heads, self.head_dim, self.causal = heads, head_dim, candidates.causal
        self.backend, self.update_every, self.closed_below = backend, update_every, closed_below
        self.open_at_most, self.multiplier_rate = open_at_most, multiplier_rate
        self.seed, self.layer = seed, layer
        shape = (heads, candidates.gates)
        self.log_alpha = nn.Parameter(torch.full(shape, gate.START))
        self.log_alpha.no_weight_decay = True  # type: ignore[attr-defined]
        self.gate_learning_rate = gate_learning_rate
        self.register_buffer("open", torch.ones(shape, dtype=torch.bool))
        # The bits of float64 numbers, so that no choice of precision for the weights rounds a step number.
        self.register_buffer("state", torch.zeros(5, dtype=torch.float64).view(torch.int64))
        # Gates of other pairs may be as many; a checkpoint tells which its gates stand for.
        self.register_buffer("meaning", torch.tensor(list(candidates.meaning.values())))
        pairs = candidates.pairs(candidates.length)
        share = (pairs / (heads * pairs.sum())).float().to(self.log_alpha.device)
        self.register_buffer("share", share, persistent=False)
        self.pairs, self.total = pairs, int(pairs.sum()) * heads
        self.budget = self.density_wanted * candidates.length**2 * heads
        if self.budget < int(pairs[pairs > 0].min()):
            raise wrong_setting(
                "density",
                f"= {density} keeps {int(self.budget)} pairs in {heads} heads of {candidates.length} tokens, fewer "
                f"than any gate holds; give more, or a smaller attention.block_size than {candidates.block_size}",
            )
        not_flash(backend, "gates that are learned")
        # Also checks heads, dropout and backend.
        self.plain = PatternAttention(
            Full(),
            max_length=candidates.length,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            causal=candidates.causal,
            dropout=dropout,
            backend=backend,
        )
        self.kv_heads, self.dropout = self.plain.kv_heads, self.plain.dropout
        self._state = [0.0] * 5  # of `state`, where reading it costs nothing; the excess is in the buffer alone
        self._noise: Tensor | None = None
        self._due = False
        self._known: dict[str, tuple[Any, list[Pattern | None]]] = {}
        self._costs: dict[int, Cost] = {}

    # -- training -------------------------------------------------------------------------------------------------

    def begin_step(self, step: int, total: int) -> None:
        """Before each training step (repeated calls of one step change nothing): noise, target and multiplier.

        Args:
            step: optimizer steps done.
            total: optimizer steps of the whole run.
        """
        known = self._noise is not None and step == self._state[STEP]
        if self.hardened or known:
            return
        progress = step / max(1, total)
        noisy = progress >= self.schedule.open_until
        # Not below 0: where the density is low the damping alone opens gates, which does not swing as a sum over time would.
        ascent = self.multiplier_rate / max(1, total) * self._stored()[EXCESS]
        self._state[MULTIPLIER] = max(0.0, self._state[MULTIPLIER] + ascent) if noisy else 0.0
        self._state[STEP] = float(step)
        self._state[TARGET] = self.schedule.target(progress, min(1.0, self.budget / self.total))
        # Also when the target is reached: from then on what is open fits it.
        self._due = step % self.update_every == 0 or self.schedule.reaches(step, total)
        place = hashlib.blake2b(repr((self.seed, self.layer, step)).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(place))
        # On the CPU, so that every device draws the same.
        noise = torch.rand(self.log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        self._noise = noise.to(self.log_alpha.device) if noisy else torch.empty(0)
        self._store()

    def learning_rates(self, total_steps: int) -> dict[str, float]:
        """Rates that differ from the optimizer's, by parameter name."""
        falling = (self.schedule.reached_at - self.schedule.open_until) * total_steps
        return {"log_alpha": self.gate_learning_rate or min(FASTEST, TRAVEL / max(1.0, falling))}

    def auxiliary_loss(self) -> Tensor:
        """What holds the density, from above and from below: (multiplier + damping * excess) * expected share of pairs; 0 once
        hardened.

        The factor is a number, as the multiplier of an augmented Lagrangian is; its gradient is the share's alone.
        """
        unused = 0.0 * self.log_alpha.sum()  # distributed training wants a gradient for every parameter
        if self.hardened or self._noise is None or not len(self._noise):
            return unused
        chance = gate.chance_open(self.log_alpha.float())
        with torch.no_grad():
            # Also likely gates that `open_at_most` leaves no room for: they are to close, or to be worth more than others.
            counted = self.open | (chance >= self.closed_below)
            excess = (chance * self.share * counted).sum() - self._state[TARGET]
            self.state[EXCESS : EXCESS + 1] = excess.double().view(1).view(torch.int64)
            factor = self._state[MULTIPLIER] + DAMPING * excess
            # Gates without room to open are not driven to: all would soon be as likely as those that the task holds open.
            room = (self.share * self.open).sum() + self.share <= self._state[TARGET]
            moved = self.open | (factor > 0) | room
        return factor * (chance * self.share * moved).sum()

    @torch.no_grad()
    def expected_density(self) -> float:
        """Expected pairs of gates with noise over T * T, at the longest length, mean over heads."""
        share = (gate.chance_open(self.log_alpha.float()) * self.share * self.open).sum()
        return float(share) * self.total / (self.heads * self.candidates.length**2)

    @property
    def hardened(self) -> bool:
        """Whether the gates have become a plain pattern."""
        return self._state[HARD] > 0

    @property
    def harden_at(self) -> float:
        """The share of the run after which to harden."""
        return self.schedule.harden_at

    @torch.no_grad()
    def harden(self) -> Pattern:
        """Keeps the gates most likely to be open, as far as the density allows, as a plain pattern from now on."""
        if not self.hardened:
            self.open.copy_(self._best(self.budget))
            self._state[HARD] = 1.0
            self._store()
            self._restore()
        return self.plain.pattern

    def _best(self, budget: float, hesitant: float = 1.0) -> Tensor:
        """[H, G] bool: the gates most likely to be open whose pairs stay within the budget, less what is certainly closed.

        `hesitant`: times the budget up to which more gates are taken, as long as they are likelier than `closed_below`.
        """
        chance = gate.chance_open(self.log_alpha.float()).cpu()
        most = torch.where(chance >= self.closed_below, hesitant * budget, budget)
        return chosen_gates(chance, self.pairs, most, chance >= CERTAIN).to(self.open.device)

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.candidates.length

    def density(self) -> float:
        """Live pairs of the gates that are open now over T * T, at the longest length, mean over heads."""
        return float((self.open.cpu() * self.pairs).sum()) / (self.heads * self.candidates.length**2)

    def density_asked(self) -> float:
        """What `density` is to be at this step."""
        aimed = 1.0 if self._noise is None else self._state[TARGET]
        return self.density_wanted if self.hardened else aimed * self.total / (self.heads * self.candidates.length**2)

    def _stored(self) -> list[float]:
        return self.state.cpu().view(torch.float64).tolist()

    def _store(self) -> None:
        self.state.copy_(torch.tensor(self._state, dtype=torch.float64).view(torch.int64))

    def _restore(self) -> None:
        """Brings what is derived from the buffers up to date with them."""
        self._state = self._stored()
        self._known.clear()
        self._costs.clear()
        self._noise = None
        self.plain.repattern(plain_pattern(self.candidates, self.open.cpu()) if self.hardened else Full())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        theirs = state_dict.setdefault(f"{prefix}meaning", self.meaning)  # older checkpoints do not have it
        if theirs.shape == self.meaning.shape:
            for (key, own), other in zip(self.candidates.meaning.items(), theirs.tolist(), strict=True):
                if own != other:
                    raise wrong_setting(
                        key,
                        f"= {own} where the checkpoint's gates were learned with {other}; give {other}, or a checkpoint "
                        "without such gates",
                    )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._restore()
        if self.hardened and self.density() > self.density_wanted:
            raise wrong_setting(
                "density",
                f"= {self.density_wanted}, and the checkpoint's pattern is final and keeps {self.density():.4g}; "
                "give at least that, or a checkpoint from before it was final or of another attention",
            )

    def train(self, mode: bool = True) -> LearnedAttention:
        """Averages of weights are swapped in and out between training and evaluation, which nothing else would show."""
        self._known.pop("evaluation", None)
        return super().train(mode)

    # -- attention ------------------------------------------------------------------------------------------------

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Lengths | None = None, segments: Lengths | None = None):
        """q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, H, T, D]; see `PatternAttention`."""
        if self.hardened:
            return self.plain(q, k, v, lengths=lengths, segments=segments)
        return self._gated(q, k, v, lengths, segments)

    @torch.compiler.disable
    def _gated(self, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths | None, segments: Lengths | None) -> Tensor:
        c = self.candidates
        bias = self.log_gates().to(torch.promote_types(q.dtype, torch.float32))  # (H, G)
        blocks, *residues = self._patterns()
        assert blocks is not None
        length = k.shape[2]
        first = (length - q.shape[2]) // c.block_size  # the block of the first query
        given: dict[str, Any] = {
            "causal": self.causal,
            "lengths": lengths,
            "segments": segments,
            "backend": self.backend,
            "dropout_p": self.dropout if self.training else 0.0,
            "return_lse": True,
        }
        of_blocks = bias[:, c.block_gates(length, q.device)[first:]]  # (H, query blocks, key blocks)
        parts: list[Any] = [sparse_attention(q, k, v, blocks, block_bias=of_blocks, **given)]
        for n, pattern in enumerate(residues):
            if pattern is not None:
                # One number for all its pairs: it moves their log-sum-exp, and nothing else.
                out, lse = sparse_attention(q, k, v, pattern, **given)
                parts.append((out, lse + bias[:, c.residue_gate(n), None]))
        return merge_by_lse(parts, least=gate.SHUT / 2, backend=self.backend)

    def log_gates(self) -> Tensor:
        """[H, G]: 0 for an open gate, `SHUT` for one that is 0 at this step."""
        log_alpha = self.log_alpha.float() if self.log_alpha.dtype.itemsize < 4 else self.log_alpha
        noise = self._noise if self.training else None
        if noise is None or not len(noise):
            return gate.log_gate(gate.settled(log_alpha))
        return gate.log_gate(gate.sampled(log_alpha, noise.to(log_alpha)))

    @torch.no_grad()
    def _patterns(self) -> list[Pattern | None]:
        """What is visited now: the pattern of block gates, then one a stride.

        A plain pattern rather than a `DeviceLayout`: that takes no bias, and would compare nothing between steps, while
        the open gates change every few steps at most and their compiled layout serves all steps between.
        """
        # In training a set of open gates stays for `update_every` steps; in evaluation it follows the weights.
        if self.training:
            if self._due and self._noise is not None and len(self._noise):
                self.open.copy_(self._best(self._state[TARGET] * self.total, self.open_at_most))
                self._known.pop("training", None)
                self._costs.clear()
            self._due = False
            return self._remembered("training", None, lambda: self.open)
        version = (self.log_alpha._version, self.log_alpha.data_ptr())
        return self._remembered("evaluation", version, lambda: gate.settled(self.log_alpha.float()) > gate.LEAST)

    def _remembered(self, name: str, version: Any, open_now: Any) -> list[Pattern | None]:
        known = self._known.get(name)
        if known is None or known[0] != version:
            not_meta(self.open, "learned attention visits the blocks of open gates")
            chosen = open_now().cpu()
            strides = range(len(self.candidates.strides))
            patterns = [open_blocks(self.candidates, chosen), *(open_residues(self.candidates, n, chosen) for n in strides)]
            known = self._known[name] = (version, patterns)
        return known[1]

    # -- decoding ---------------------------------------------------------------------------------------------------

    @property
    def undecodable(self) -> str | None:
        """Gates decode once they are a pattern."""
        return super().undecodable or (None if self.hardened else "its gates are not hardened yet; call harden() first")

    def new_cache(self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KeyCache:
        """Of the hardened pattern; see `Decodes.new_cache`."""
        return super().new_cache(batch) if self.undecodable else self.plain.new_cache(batch, device=device, dtype=dtype)  # type: ignore[return-value]

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: KeyCache, *, lengths: Tensor | None = None) -> Tensor:
        """By the hardened pattern; see `Decodes.decode`."""
        return self.plain.decode(q, k, v, cache, lengths=lengths)

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def pattern(self) -> Pattern:
        """The pairs of the gates that are open now, as a plain pattern."""
        return self.plain.pattern if self.hardened else plain_pattern(self.candidates, self.open.cpu())

    def cost(self, length: int) -> Cost:
        """As in `PatternAttention`, for the gates that are open now."""
        if self.hardened:
            return self.plain.cost(length)
        if length not in self._costs:
            visited = sum(
                visited_pairs(
                    pattern,
                    length,
                    self.heads,
                    self.causal,
                    self.candidates.block_size if isinstance(pattern, OpenBlocks) else 0,
                )
                for pattern in self._remembered("training", None, lambda: self.open)
                if pattern is not None
            )
            live = int((self.open.cpu() * self.candidates.pairs(length)).sum())
            per_pair = 4 * self.head_dim
            held = 4 * self.kv_heads * self.head_dim * length  # of all keys, until gates close for good
            self._costs[length] = Cost(live, visited, per_pair * live, per_pair * visited, state_bytes=held)
        return self._costs[length]

    def gate_table(self) -> list[dict[str, Any]]:
        """Per head its open gates by name, for people and records."""
        names = self.candidates.names
        return [
            {"head": head, "open": [name for name, bit in zip(names, bits, strict=True) if bit]}
            for head, bits in enumerate(self.open.cpu().tolist())
        ]

    def extra_repr(self) -> str:
        state = "hardened" if self.hardened else "gated"
        return f"{len(self.candidates.names)} gates a head, {state}, density={self.density_wanted}, {self.candidates}"
