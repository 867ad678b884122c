"""The cost of an attention, a model or a run."""

from longspan.cost.analytic import Costed, linear_flops, total_cost
from longspan.cost.types import Cost

__all__ = ["Cost", "Costed", "linear_flops", "total_cost"]
