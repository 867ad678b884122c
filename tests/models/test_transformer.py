"""Encoder and decoder: shapes, who sees whom, padding, gradients, recomputation, compilation."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from longspan.config.errors import CallError
from longspan.models import Decoder, Encoder, parameter_count, transformer

VOCABULARY = 13


def build(kind, attention, **sizes):
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 32, "heads": 2, **sizes}
    return kind(vocab_size=VOCABULARY, max_length=64, attention=attention, **sizes)


def tokens_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


class Averaging(torch.nn.Module):
    """The cheapest attention there is: a mean over all keys."""

    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, q, k, v, *, lengths=None, segments=None):
        assert q.shape[1] == self.sizes["heads"] and k.shape[1] == v.shape[1] == self.sizes["kv_heads"]
        assert q.shape[-1] == k.shape[-1] == v.shape[-1] == self.sizes["head_dim"]
        return torch.zeros_like(q) + v.mean(dim=(1, 2), keepdim=True)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 33),
    heads=st.sampled_from([(1, None), (2, 1), (4, 2), (6, 3)]),
    head_dim=st.sampled_from([16, 18, 32]),
    mlp=st.sampled_from(["swiglu", "gelu"]),
    qk_norm=st.booleans(),
    causal=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_hidden_states_have_the_shape_of_the_tokens(batch, length, heads, head_dim, mlp, qk_norm, causal):
    model = transformer(
        causal=causal,
        vocab_size=VOCABULARY,
        max_length=64,
        attention=Averaging,
        layers=1,
        width=24,
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=head_dim,
        mlp=mlp,
        qk_norm=qk_norm,
    )
    assert model.causal is causal
    assert model(tokens_of(batch, length)).shape == (batch, length, 24)


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_every_parameter_gets_a_gradient(kind, sdpa):
    model = build(kind, sdpa, kv_heads=1, qk_norm=True)
    model(tokens_of(2, 20)).pow(2)[..., 0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@given(length=st.integers(2, 24), place=st.integers(1, 23))
@settings(max_examples=15, deadline=None)
def test_decoder_sees_no_later_token(decoder, length, place):
    place = min(place, length - 1)
    tokens = tokens_of(1, length)
    changed = tokens.clone()
    changed[:, place:] = (changed[:, place:] + 1) % VOCABULARY
    before, after = decoder(tokens), decoder(changed)
    torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, place], after[:, place])


@pytest.fixture(scope="module")
def decoder():
    class Causal(Averaging):
        def forward(self, q, k, v, *, lengths=None, segments=None):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return build(Decoder, Causal).eval()


def test_encoder_sees_later_tokens(sdpa):
    model = build(Encoder, sdpa).eval()
    tokens = tokens_of(1, 9)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    assert not torch.allclose(model(tokens)[:, 0], model(changed)[:, 0])


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@pytest.mark.parametrize("lengths", [(5, 17), (1, 30)])
def test_padding_changes_nothing(kind, lengths, sdpa):
    model = build(kind, sdpa).eval()
    alone = [tokens_of(1, length)[0] for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(alone, batch_first=True, padding_value=VOCABULARY - 1)
    together = model(padded, lengths=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        expected = model(alone[row][None])[0]
        torch.testing.assert_close(together[row, :length], expected, rtol=1e-5, atol=1e-5)


def test_segments_keep_documents_apart(sdpa):
    model = build(Decoder, sdpa).eval()
    tokens = tokens_of(1, 20)
    segments = torch.tensor([[0] * 8 + [1] * 12])
    # rotary positions are relative, so that the second document is as if it stood alone
    torch.testing.assert_close(model(tokens, segments=segments)[:, 8:], model(tokens[:, 8:]), rtol=1e-4, atol=1e-5)


def test_recomputation_gives_the_same_gradients(sdpa):
    plain = build(Decoder, sdpa, dropout=0.2)
    recomputing = build(Decoder, sdpa, dropout=0.2, activation_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain, recomputing):
        torch.manual_seed(7)
        loss = model(tokens_of(2, 16), lengths=torch.tensor([16, 9])).square().sum()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_blocks_agree_keep_their_names_and_recompile_once(sdpa, monkeypatch):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    layers = 10  # more than torch's limit of 8 recompilations, as each layer's attention knows its number
    plain = build(Decoder, sdpa, layers=layers).eval()
    compiled = build(Decoder, sdpa, layers=layers, compile=True).eval()
    assert list(plain.state_dict()) == list(compiled.state_dict())
    with torch.no_grad():
        for length in (16, 21, 40, 33, 64):
            tokens = tokens_of(2, length)
            torch.testing.assert_close(plain(tokens), compiled(tokens), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2 * layers  # the first length, then any length
    assert list(copy.deepcopy(compiled).state_dict()) == list(plain.state_dict())


def test_a_forward_in_inference_mode_does_not_spoil_training(sdpa):
    model = build(Encoder, sdpa)
    with torch.inference_mode():
        model(tokens_of(1, 12))
    model(tokens_of(1, 12)).sum().backward()


def test_half_precision_weights_leave_positions_alone(sdpa):
    model = build(Encoder, sdpa).to(torch.bfloat16)
    assert model(tokens_of(1, 12)).dtype == torch.bfloat16
    assert model.rotary(12, torch.device("cpu"))[0].dtype == torch.float32


def test_autocast_runs_attention_in_half_precision():
    seen = []

    class Watching(Averaging):
        def forward(self, q, k, v, *, lengths=None, segments=None):
            seen.append((q.dtype, k.dtype, v.dtype))
            return super().forward(q, k, v)

    model = build(Encoder, Watching, qk_norm=True)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens_of(1, 8))
    assert set(seen) == {(torch.bfloat16,) * 3}


def test_grouped_heads_and_parameters(sdpa):
    full, grouped = build(Encoder, sdpa, heads=2), build(Encoder, sdpa, heads=2, kv_heads=1)
    assert parameter_count(full) - parameter_count(grouped) == 2 * 2 * 16 * 32  # layers, k and v, D, C


def test_residual_stream_does_not_grow_with_depth(sdpa):
    model = build(Encoder, sdpa, layers=24, width=64, heads=4)
    stream = []
    model.norm.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0].std().item()))
    model(tokens_of(2, 32))
    assert 0.1 < stream[0] < 2.0


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (torch.zeros(2, 65, dtype=torch.int64), {}, "max_length=64"),
        (torch.zeros(5, dtype=torch.int64), {}, r"\[B, T\]"),
        (torch.zeros(2, 5), {}, "integers"),
        (torch.full((1, 3), VOCABULARY), {}, f"token id {VOCABULARY} is outside vocab_size={VOCABULARY}"),
        (torch.full((1, 3), -1), {}, "token id -1"),
        (torch.zeros(2, 5, dtype=torch.int64), {"lengths": torch.ones(3)}, "lengths"),
        (torch.zeros(2, 5, dtype=torch.int64), {"segments": torch.ones(2, 4)}, "segments"),
    ],
)
def test_wrong_tokens_are_named(tokens, arguments, message):
    with pytest.raises(CallError, match=message):
        build(Encoder, Averaging)(tokens, **arguments)


class Wrapper(torch.nn.Module):
    """As FSDP wraps a block: what it lacks it asks of the block, which typing.Protocol does not see from Python 3.12 on."""

    def __init__(self, block):
        super().__init__()
        self._wrapped = block

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_wrapped"), name)


def test_wrapped_blocks_state_their_cost(sdpa):
    model = Encoder(vocab_size=11, max_length=32, attention=sdpa, layers=2, width=32, heads=2)
    expected, attention = model.cost(32), model.attention_modules()
    model.blocks = torch.nn.ModuleList(Wrapper(block) for block in model.blocks)
    assert model.cost(32) == expected and model.attention_modules() == attention
