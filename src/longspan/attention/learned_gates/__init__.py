"""`attention=learned`: each head learns what it attends to, and gets faster for it."""

from longspan.attention.learned_gates.build import learned
from longspan.attention.learned_gates.candidates import Candidates
from longspan.attention.learned_gates.module import LearnedAttention

__all__ = ["Candidates", "LearnedAttention", "learned"]
