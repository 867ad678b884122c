"""Linear attention with scalar decay and the gated delta rule, in O(T): plain torch on any device, Triton on CUDA."""

from longspan_kernels.linear.backends import BACKENDS
from longspan_kernels.linear.convolution import short_convolution
from longspan_kernels.linear.delta_op import gated_delta_rule
from longspan_kernels.linear.op import linear_attention
from longspan_kernels.linear.reference import reference_linear_attention

__all__ = ["BACKENDS", "gated_delta_rule", "linear_attention", "reference_linear_attention", "short_convolution"]
