"""Settings that do not fit are refused by name, value and fix; attention is chosen layer by layer."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from longspan.attention import GatedDeltaNet
from longspan.config.errors import ConfigError
from longspan.models import Encoder, TransformerSettings, attention_of_each_layer


@pytest.mark.parametrize(
    ("sizes", "key", "fix"),
    [
        ({"width": 100, "heads": 3}, "model.width", "99 or 102"),
        ({"heads": 4, "kv_heads": 3}, "model.kv_heads", "1, 2, 4"),
        ({"width": 32, "heads": 4}, "model.heads", "8 wide"),
        ({"width": 1024, "heads": 2}, "model.heads", "16 to 256"),
        ({"head_dim": 300}, "model.head_dim", "16 to 256"),
        ({"head_dim": 17}, "model.head_dim", "even"),
        ({"layers": 0}, "model.layers", "1 or more"),
        ({"layers": 2.5}, "model.layers", "whole number"),
        ({"mlp": "relu"}, "model.mlp", "swiglu, gelu"),
        ({"mlp_width": -1}, "model.mlp_width", "1 or more"),
        ({"dropout": 1.0}, "model.dropout", "not including, 1"),
        ({"rotary_base": 0}, "model.rotary_base", "above 0"),
        ({"compile": "yes"}, "model.compile", "true or false, or reduce-overhead"),
    ],
)
def test_wrong_sizes_name_key_value_and_fix(sizes, key, fix):
    with pytest.raises(ConfigError) as caught:
        TransformerSettings(**sizes)
    name = key.removeprefix("model.")
    value = sizes.get(name, getattr(TransformerSettings, name, None))
    assert str(caught.value).startswith(f"{key}={value!r}: ")
    assert fix in str(caught.value)


@given(st.integers(16, 2048))
def test_both_mlps_have_about_the_same_parameters(width):
    gelu = TransformerSettings(width=width, head_dim=32, mlp="gelu").hidden_width * 2 * width
    swiglu = TransformerSettings(width=width, head_dim=32, mlp="swiglu").hidden_width * 3 * width
    assert gelu <= swiglu <= gelu + 3 * 16 * width


def test_unknown_vocabulary_and_length_are_refused(sdpa):
    for key in ("vocab_size", "max_length"):
        with pytest.raises(ConfigError, match=f"model.{key}=0"):
            Encoder(**{"vocab_size": 5, "max_length": 8, "attention": sdpa, key: 0})


def test_attention_cycles_over_layers(sdpa):
    local, full = partial(sdpa), partial(sdpa)
    assert attention_of_each_layer(local, 3) == [local] * 3
    assert attention_of_each_layer([local, full], 3) == [local, full, local]
    named = {"local": local, "full": full}
    assert attention_of_each_layer(named, 4, ["local", "local", "full"]) == [local, local, full, local]
    assert attention_of_each_layer(named, 3) == [local, full, local]
    gated, _, own = attention_of_each_layer(named, 3, ["gated_delta", "gated_delta", "full"])
    assert isinstance(gated(heads=2, head_dim=16, causal=True, layer=0, max_length=8), GatedDeltaNet) and own is full
    for name, causal, said in (
        (
            "nsa",
            True,
            r"= 'nsa': its top_k = 4 is more .* attention=hybrid attention.layers=\[\{name: nsa, top_k: ...\}, ...\]",
        ),
        ("linformer", True, "= 'linformer' sums keys"),
    ):
        with pytest.raises(ConfigError, match=f"model.attention_layers {said}"):
            attention_of_each_layer(named, 1, [name])[0](heads=2, head_dim=16, causal=causal, layer=0, max_length=64)


def test_attention_is_told_its_place(sdpa):
    told = []

    def maker(**sizes) -> nn.Module:
        told.append(sizes)
        return sdpa(**sizes)

    Encoder(vocab_size=5, max_length=8, attention=maker, layers=2, width=64, heads=4, kv_heads=2)
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 16, "causal": False, "max_length": 8}
    assert told == [{**sizes, "layer": 0}, {**sizes, "layer": 1}]


def test_wrong_choices_of_attention_are_named(sdpa):
    named = {"local": sdpa, "full": sdpa}
    with pytest.raises(ConfigError, match=r"model.attention_layers='locl': .*Did you mean local\?"):
        attention_of_each_layer(named, 2, ["locl"])
    with pytest.raises(TypeError, match="empty dict"):
        attention_of_each_layer({}, 2)
    with pytest.raises(ConfigError, match="dict of named"):
        attention_of_each_layer(sdpa, 2, ["local"])
    with pytest.raises(ConfigError, match="at least one"):
        attention_of_each_layer(named, 2, [])
    with pytest.raises(TypeError, match="callable"):
        attention_of_each_layer([3], 2)
    with pytest.raises(TypeError, match="callable"):
        attention_of_each_layer(None, 2)
