"""`attention=learned`: each head learns what it attends to, and gets faster for it."""

from longspan.attention.learned.build import learned
from longspan.attention.learned.candidates import Candidates
from longspan.attention.learned.module import LearnedAttention

__all__ = ["Candidates", "LearnedAttention", "learned"]
