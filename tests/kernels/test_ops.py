"""Ops of this project are seen by what looks at ops, though an eager call goes through a Function of its own."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from longspan.attention import bigbird
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.ops import Op
from longspan_kernels.linear import gated_delta_rule, linear_attention


@pytest.fixture(scope="module")
def scaled() -> Op:
    """x * factor + y, whose gradient of y is left out where y wants none."""

    def scaled(x: torch.Tensor, y: torch.Tensor | None, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        return x * factor if y is None else x * factor + y, x.detach().clone()

    def backward(ctx, dout, _):
        return dout * ctx.factor, dout.clone() if ctx.needs_input_grad[1] else None, None

    def save(ctx, inputs, output):
        ctx.factor = inputs[2]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    made = Op("scaled_in_a_test", scaled)
    made.register_fake(lambda x, y, factor: (torch.empty_like(x), torch.empty_like(x)))
    made.register_autograd(backward, setup_context=save)
    return made


@pytest.mark.parametrize("with_y", [False, True])
def test_an_eager_call_and_the_op_itself_give_the_same(scaled: Op, with_y: bool) -> None:
    results = []
    for call in (scaled, scaled.overload, torch.compile(scaled, backend="aot_eager", fullgraph=True)):
        x = torch.arange(5.0, dtype=torch.float64, requires_grad=True)
        y = torch.ones(5, dtype=torch.float64, requires_grad=True) if with_y else None
        out, copy = call(x, y, 3.0)
        assert not copy.requires_grad
        out.square().sum().backward()
        results.append((out.detach(), x.grad, None if y is None else y.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)
    expected = torch.arange(5.0, dtype=torch.float64) * 3 + with_y
    torch.testing.assert_close(results[0][:2], (expected, 6 * expected), rtol=0, atol=0)


def test_an_op_that_is_defined_again_is_the_new_one() -> None:
    def grown(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    x = torch.full((3,), 5.0)
    assert Op("defined_again_in_a_test", grown)(x)[0] == 6
    again = Op("defined_again_in_a_test", doubled)
    again.register_fake(torch.empty_like)
    assert again(x)[0] == torch.ops.longspan.defined_again_in_a_test(x)[0] == 10


def test_opcheck(scaled: Op) -> None:
    x = torch.randn(4, requires_grad=True)
    torch.library.opcheck(scaled.overload, (x, None, 2.0))
    torch.library.opcheck(scaled.overload, (x, torch.randn(4), 2.0))


def test_without_gradients_no_graph_is_kept(scaled: Op) -> None:
    x = torch.randn(4, requires_grad=True)
    with torch.no_grad():
        assert not scaled(x, None, 2.0)[0].requires_grad
    assert scaled(x.detach(), None, 2.0)[0].grad_fn is None


def test_an_op_without_gradients_refuses_to_go_back() -> None:
    """Torch itself would record the function's own steps, or find no gradient where a kernel did them."""
    made = Op("pair_in_a_test", _pair)
    made.register_fake(lambda x: [torch.empty_like(x), torch.empty_like(x)])
    x = torch.randn(4, requires_grad=True)
    for out in made(x):
        torch.testing.assert_close(out.detach(), 2 * x.detach(), rtol=0, atol=0)
        with pytest.raises(BackendError, match=r"longspan::pair_in_a_test has no gradient: detach"):
            out.sum().backward()


def _pair(x: torch.Tensor) -> list[torch.Tensor]:
    assert not (2 * x).requires_grad
    return [2 * x, x + x]


@pytest.mark.parametrize("rule", [linear_attention, gated_delta_rule])
def test_second_gradients_of_states_are_those_of_the_definition_alone(rule) -> None:
    q, k, v = (torch.randn(1, 1, 3, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    rest = () if rule is linear_attention else (torch.rand(1, 1, 3, dtype=torch.float64),)
    assert torch.autograd.gradgradcheck(lambda *x: rule(*x, *rest, backend="reference"), (q, k, v), fast_mode=True)
    with pytest.raises(BackendError, match=r'create_graph=True: .*backend="reference"'):
        torch.autograd.grad(rule(q, k, v, *rest, backend="chunked").sum(), q, create_graph=True)


def test_flops_and_recomputation_see_the_calls_of_a_layer() -> None:
    layer = bigbird(heads=2, head_dim=16, causal=False, max_length=256, block_size=16)
    counters, gradients = [], []
    for call in (layer, lambda *tokens: checkpoint(layer, *tokens, use_reentrant=False)):
        torch.manual_seed(0)
        tokens = [torch.randn(1, 2, 256, 16, requires_grad=True) for _ in range(3)]
        with FlopCounterMode(display=False) as counter:
            call(*tokens).square().sum().backward()
        counters.append(counter)
        gradients.append([x.grad for x in tokens])
    plain, again = counters
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    forward, backward = (plain.get_flop_counts()["Global"][op.overload.overloadpacket] for op in _ops())
    assert plain.get_total_flops() == forward + backward > 0
    assert again.get_total_flops() == 2 * forward + backward


def _ops() -> tuple[Op, Op]:
    from longspan_kernels.block_sparse.op import block_sparse_backward, block_sparse_forward

    return block_sparse_forward, block_sparse_backward
