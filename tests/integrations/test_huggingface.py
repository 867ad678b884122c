"""Patterns as `attn_implementation` of transformers' models: the model's own outputs under the same mask."""

from __future__ import annotations

import pytest
import torch

from longspan.config.errors import CallError
from longspan.integrations.huggingface import register
from longspan.patterns import Full, Local, PatternError, Strided, parse_pattern

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
DECODERS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=24),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=24),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=256),
}
ENCODERS = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "modernbert": lambda: transformers.ModernBertConfig(**SIZES, local_attention=24, pad_token_id=0),
}


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register()
    register()


def model_of(name, implementation, **more):
    decoder = name in DECODERS
    config = (DECODERS | ENCODERS)[name]()
    for key, value in more.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    make = transformers.AutoModelForCausalLM if decoder else transformers.AutoModel
    return make.from_config(config, attn_implementation=implementation).eval()


def outputs(model, ids, **more):
    with torch.no_grad():
        out = model(ids, **more)
    return getattr(out, "logits", None) if hasattr(out, "logits") else out.last_hidden_state


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_a_full_pattern_gives_the_models_own_outputs(name):
    ids = torch.randint(3, 64, (2, 70))
    own = outputs(model_of(name, "eager"), ids)
    torch.testing.assert_close(outputs(model_of(name, "longspan_full"), ids), own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs(model_of(name, "longspan:Full()"), ids), own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_padding_is_not_seen(name, side):
    ids, lengths = torch.randint(3, 64, (3, 60)), torch.tensor([60, 41, 7])
    place = torch.arange(60)
    mask = (place < lengths[:, None]) if side == "right" else (place >= 60 - lengths[:, None])
    own = outputs(model_of(name, "eager"), ids, attention_mask=mask.long())[mask]
    ours = outputs(model_of(name, "longspan:Full()"), ids, attention_mask=mask.long())[mask]
    torch.testing.assert_close(ours, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["Local(9)", "Local(5) | Strided(8)", "Local(8) | Global(first=4)", "bigbird"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_pattern_is_the_mask_it_draws(name, text):
    ids = torch.randint(3, 64, (2, 90))
    model = model_of(name, f"longspan:{text}")
    causal = name in DECODERS
    if text == "bigbird":
        assert torch.isfinite(outputs(model, ids)).all()
        return
    live = parse_pattern(text).mask(90, causal=causal)[:, None].expand(2, 1, 90, 90)
    eager = model_of(name, "eager")
    own = outputs(eager, ids, attention_mask=torch.zeros(live.shape).masked_fill(~live, torch.finfo(torch.float32).min))
    torch.testing.assert_close(outputs(model, ids), own, atol=1e-4, rtol=1e-4)


def test_padding_does_not_move_a_pattern_that_follows_from_the_length():
    ids, model = torch.randint(3, 64, (2, 90)), model_of("bert", "longspan:BigBird(16, 1, 1, 2)")
    mask = torch.arange(90) < torch.tensor([[41], [90]])
    together = outputs(model, ids, attention_mask=mask.long())
    torch.testing.assert_close(together[:1, :41], outputs(model, ids[:1, :41]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1:], outputs(model, ids[1:]), atol=1e-5, rtol=1e-5)


def test_packed_positions_part_documents():
    ids, model = torch.randint(3, 64, (1, 50)), model_of("llama", "longspan:Full()")
    positions = torch.cat([torch.arange(20), torch.arange(30)])[None]
    packed = outputs(model, ids, position_ids=positions, use_cache=False)
    apart = torch.cat([outputs(model, ids[:, :20]), outputs(model, ids[:, 20:])], 1)
    torch.testing.assert_close(packed, apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("text", ["Full()", "Local(9) | Strided(7)"])
def test_generation_with_a_cache_is_generation_without(name, text):
    model = model_of(name, f"longspan:{text}")
    ids = torch.randint(3, 64, (2, 21))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0  # prompts of unequal length are padded on the left
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 63}
    with_cache, without = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(with_cache, without)


def test_training_with_checkpointing_and_dropout_gives_gradients():
    model = model_of("llama", "longspan:Local(16)", attention_dropout=0.1).train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # the name is of 5.24 on
    ids = torch.randint(3, 64, (2, 48))
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_gradients_are_the_models_own():
    ids = torch.randint(3, 64, (2, 48))
    grads = []
    for implementation in ("eager", "longspan:Full()"):
        model = model_of("llama", implementation).train()
        model(ids, labels=ids, use_cache=False).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for own, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-4)


def test_a_models_implementation_can_be_changed_later():
    model, ids = model_of("llama", "eager"), torch.randint(3, 64, (1, 40))
    before = outputs(model, ids)
    model.set_attn_implementation("longspan:Local(4)")
    assert (outputs(model, ids) - before).abs().max() > 1e-3
    model.set_attn_implementation("longspan:Full()")
    torch.testing.assert_close(outputs(model, ids), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "text, told", [("Locl(4)", "Did you mean Local"), ("moba", "no variant made of a pattern"), ("Local(0)", "window")]
)
def test_a_wrong_expression_fails_when_the_model_is_made(text, told):
    with pytest.raises(PatternError, match=told):
        model_of("llama", f"longspan:{text}")


def test_what_cannot_be_served_is_refused_with_a_reason():
    ids = torch.randint(3, 64, (2, 40))
    left = torch.ones_like(ids)
    left[0, :5] = 0
    with pytest.raises(CallError, match="pad on the right"):
        outputs(model_of("llama", "longspan:Local(8) | Global(first=2)"), ids, attention_mask=left)
    with pytest.raises(CallError, match="mask of its own"):
        outputs(model_of("llama", "longspan:Local(8)"), ids, attention_mask=torch.zeros(2, 1, 40, 40))
    config = transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16)
    capped = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="longspan:Local(8)").eval()
    with pytest.raises(CallError, match="softcap"):
        outputs(capped, ids)
    with pytest.raises(CallError, match="dynamic cache"):
        model_of("llama", "longspan:Local(8)").generate(ids, max_new_tokens=3, cache_implementation="static", pad_token_id=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "modernbert"])
def test_attention_weights_are_refused_by_every_family(name):
    with pytest.raises(CallError, match="output_attentions"):
        model_of(name, "longspan:Local(8)")(torch.randint(3, 64, (1, 20)), output_attentions=True)


@pytest.mark.parametrize("kind", ["BartConfig", "T5Config", "BertConfig"])
def test_cross_attention_is_refused_where_the_model_is_made(kind):
    """Source and target of one length would be taken for one sequence, the padding of the one for that of the other."""
    more = {"is_decoder": True, "add_cross_attention": True} if kind == "BertConfig" else {}
    with pytest.raises(CallError, match=r"cross-attention.*load an encoder or a decoder alone"):
        transformers.AutoModel.from_config(getattr(transformers, kind)(**more), attn_implementation="longspan:Full()")


def test_an_encoder_alone_is_refused_for_what_it_does():
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    model = transformers.T5EncoderModel._from_config(config, attn_implementation="longspan:Local(16)")
    with pytest.raises(CallError, match="position_bias"):
        model(torch.randint(0, 50, (1, 20)))


@pytest.mark.parametrize("name", ["T5EncoderModel", "UMT5EncoderModel", "T5ForTokenClassification", "LongT5EncoderModel"])
def test_an_encoder_alone_is_not_called_cross_attention(name):
    family = name.partition("Encoder")[0].partition("For")[0]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, num_labels=2
    )
    with pytest.raises(CallError, match=r"position_bias|computes its attention itself"):
        model = getattr(transformers, name)._from_config(config, attn_implementation="longspan:Local(16)")
        model(torch.randint(0, 50, (1, 20)))


@pytest.mark.parametrize("kind", ["DebertaV2Config", "BloomConfig", "FalconConfig", "LongformerConfig", "MptConfig"])
def test_models_that_compute_attention_themselves_are_refused_where_they_are_made(kind):
    config = getattr(transformers, kind)(hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(CallError, match="in code of its own"):
        transformers.AutoModel.from_config(config, attn_implementation="longspan:Local(8)")
    with torch.device("meta"):
        transformers.AutoModel.from_config(config, attn_implementation="eager")


def test_a_model_that_views_its_heads_as_one_is_served():
    sizes = {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1, "kv_channels": 16, "num_key_value_heads": 2}
    model = transformers.JetMoeForCausalLM._from_config(
        transformers.JetMoeConfig(**sizes), attn_implementation="longspan:Full()"
    )
    model(torch.randint(3, 64, (2, 20))).logits.sum().backward()


def test_values_narrower_than_keys_are_served():
    sizes = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24, "kv_lora_rank": 16, "q_lora_rank": 16}
    ids, own = torch.randint(3, 64, (2, 20)), []
    for implementation in ("eager", "longspan:Full()"):
        torch.manual_seed(0)
        config = transformers.DeepseekV3Config(**SIZES, **sizes, num_key_value_heads=4, first_k_dense_replace=2)
        model = transformers.DeepseekV3ForCausalLM._from_config(config, attn_implementation=implementation).eval()
        own.append(model(ids).logits)
    torch.testing.assert_close(own[1], own[0], atol=1e-4, rtol=1e-4)


def test_models_made_of_other_files_models_are_served():
    ids, own = torch.randint(3, 64, (1, 40)), {}
    for implementation in ("eager", "longspan:Full()", "longspan:Local(8)"):
        torch.manual_seed(0)
        config = transformers.DPRConfig(**SIZES)  # DPR holds a BERT
        model = transformers.AutoModel.from_config(config, attn_implementation=implementation).eval()
        own[implementation] = model(ids).pooler_output
    torch.testing.assert_close(own["longspan:Full()"], own["eager"], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(own["longspan:Local(8)"], own["eager"], atol=1e-3)


def test_patterns_of_distances_alone_are_known():
    from longspan.integrations.huggingface.attention import knows_distances_alone as alone

    assert alone(Full()) and alone(Local(4) | Strided(8)) and alone(Local(4) & Full())
    assert not alone(parse_pattern("Local(4) | Global(first=1)")) and not alone(parse_pattern("Fixed(8, 2)"))
