"""`attention=reformer`: against the paper's definition written densely, against transformers, chunks, cost, errors."""

import pytest
import torch
from chosen_by_content import PLACE, compare, configured, dense, draw

import longspan.attention as variants
from longspan.attention.buckets import Chunks
from longspan.attention.hashing import buckets_of, directions, factors
from longspan.config.errors import CallError, ConfigError

SIZES = {"chunk": 16, "buckets": 8, "rounds": 3}


def made(**change):
    return variants.reformer(**PLACE | SIZES | change).double().eval()


def found(module, q, b, h, r, length):
    """[T, T] bool: pairs that one round finds, the token itself left out."""
    T, size = q.shape[2], module.chunk
    turned = q[b, h] @ module.eval_rotations[h, :, r]
    bucket = torch.cat((turned, -turned), -1).argmax(-1).tolist()
    chunk = {}
    if module.cut == "aligned":
        for i in range(length):
            chunk[i] = sum(bucket[j] == bucket[i] for j in range(i)) // size
    else:
        for place, i in enumerate(sorted(range(length), key=lambda i: (bucket[i], i))):
            chunk[i] = place // size
    last = -(-length // size) - 1
    pairs = torch.zeros(T, T, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            near = chunk[i] - chunk[j] in (0, 1)
            if module.cut == "around":
                pairs[i, j] = near or (chunk[i] == 0 and chunk[j] == last)
            else:
                pairs[i, j] = near and bucket[i] == bucket[j]
    pairs.fill_diagonal_(False)
    return pairs.tril() if module.causal else pairs


def oracle(module, q, v, ends):
    B, H, T, _ = q.shape
    keys = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + 16e-6)  # the authors' 1e-6 a mean square
    counts = torch.stack(
        [
            torch.stack(
                [sum(found(module, q.detach(), b, h, r, ends[b]).long() for r in range(module.rounds)) for h in range(H)]
            )
            for b in range(B)
        ]
    )
    if module.once:
        out = dense(q, keys, v, counts > 0, scale=1.0)
    else:
        scores = (q @ keys.transpose(-1, -2) + counts.double().log()).masked_fill(counts == 0, float("-inf"))
        out = scores.masked_fill((counts == 0).all(-1, keepdim=True), 0.0).softmax(-1) @ v.repeat_interleave(2, 1)
    alone = (counts == 0).all(-1, keepdim=True)
    exists = (torch.arange(T) < torch.tensor(ends)[:, None])[:, None, :, None]
    return torch.where(alone, v.repeat_interleave(2, 1), out).masked_fill(~exists, 0.0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunks", ["aligned", "sorted", "transformers"])
@pytest.mark.parametrize(("length", "lengths"), [(90, None), (75, [75, 33]), (5, None)])
def test_outputs_and_gradients_are_the_papers(causal, chunks, length, lengths):
    module = made(causal=causal, chunks=chunks)
    q, k, v = draw(length)
    out = module(q, k, v, lengths=None if lengths is None else torch.tensor(lengths))
    compare(out, oracle(module, q, v, lengths or [length, length]), (q, v))


@pytest.mark.parametrize("chunks", ["aligned", "sorted", "transformers"])
def test_segments_stay_apart(chunks):
    module = made(chunks=chunks)
    q, k, v = draw(80)
    segments = torch.stack([torch.arange(80) // 30, torch.arange(80) // 7 * 1000])
    expected = torch.zeros_like(q)
    for b, own in enumerate(segments):  # each document as if it stood alone
        for name in own.unique():
            at = (own == name).nonzero()[:, 0]
            alone = oracle(module, q[b : b + 1, :, at], v[b : b + 1, :, at], [len(at)])
            expected = expected.index_put((torch.tensor(b), torch.arange(4)[:, None], at), alone[0])
    compare(module(q, k, v, segments=segments), expected, (q, v))


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize(("rounds", "buckets"), [(1, 8), (1, [16, 8]), (2, 8)])
def test_transformers_with_the_same_weights(decoder, rounds, buckets):
    modeling = pytest.importorskip("transformers.models.reformer.modeling_reformer", reason="transformers is not installed")
    config = modeling.ReformerConfig(
        attn_layers=["lsh"],
        lsh_attn_chunk_length=16,
        num_hashes=rounds,
        num_buckets=buckets,
        lsh_num_chunks_before=1,
        lsh_num_chunks_after=0,
        hash_seed=3,
        hidden_size=64,
        num_attention_heads=4,
        attention_head_size=16,
        is_decoder=decoder,
        lsh_attention_probs_dropout_prob=0.0,
    )
    theirs = modeling.LSHSelfAttention(config, layer_idx=0).double().eval()
    count = buckets if isinstance(buckets, int) else buckets[0] * buckets[1]
    place = PLACE | {"kv_heads": 4, "causal": decoder}
    ours = variants.reformer(chunk=16, buckets=count, rounds=rounds, chunks="transformers", **place).eval()
    torch.manual_seed(3)
    ours.eval_rotations = torch.randn(4, 16, rounds, directions(count), dtype=torch.float64)
    x = torch.randn(2, 96, 64, dtype=torch.float64, requires_grad=True)
    q, v = (layer(x).view(2, 96, 4, 16).transpose(1, 2) for layer in (theirs.query_key, theirs.value))
    expected = theirs(x).hidden_states.view(2, 96, 4, 16).transpose(1, 2)
    out = ours(q, q, v)
    # Their rounds stand in one row: the first chunk of each looks back into another round. Of one round that is its own last.
    alike = torch.ones(2, 4, 96, dtype=torch.bool)
    if rounds > 1:
        first = ours.order(q).order.view(2, 4, rounds, 96)[..., :16].flatten(2)
        alike.scatter_(2, first, False)
    leaves = (x, theirs.query_key.weight, theirs.value.weight)
    compare(out * alike[..., None], expected * alike[..., None], leaves)


def test_later_tokens_change_nothing_where_chunks_are_aligned():
    q, k, v = draw(120)
    for chunks, same in (("aligned", True), ("sorted", False)):
        module = made(chunks=chunks)
        before = module(q, k, v)[:, :, :70]
        later = q.detach().clone()
        later[:, :, 70:] = later[:, :, 70:].flip(-1) * 2.0
        assert torch.allclose(module(later, k, v)[:, :, :70], before) == same


def test_more_rounds_find_more():
    q, k, _ = draw(64)
    many, few = made(rounds=4), made(rounds=1)
    few.eval_rotations = many.eval_rotations[:, :, :1]
    more, less = ((module.attention_weights(q, k) > 0).tril(-1) for module in (many, few))
    assert (more & less).equal(less) and more.sum() > less.sum()


def test_keys_are_not_looked_at_and_the_model_makes_none():
    from longspan.models import Decoder

    module = made()
    q, k, v = draw(40)
    assert module(q, k, v).equal(module(q, torch.full_like(k, float("nan")), v))
    sizes = {"vocab_size": 9, "max_length": 64, "layers": 1, "width": 64, "heads": 4, "kv_heads": 2, "qk_norm": True}
    model = Decoder(attention=lambda **place: variants.reformer(chunk=16, **place), **sizes)
    mixer = model.layers()[0].mixer
    assert mixer.qkv.out_features == (4 + 2) * 16
    model(torch.randint(0, 9, (2, 50))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_rotations_are_drawn_in_training_and_fixed_in_evaluation():
    module = made()
    q, k, v = draw(64)
    assert module(q, k, v).equal(module(q, k, v))
    assert not module.train()(q, k, v).equal(module(q, k, v))
    assert not made(layer=1).eval_rotations.equal(made(layer=0).eval_rotations)
    assert made(seed=1).eval_rotations.equal(made(layer=1).eval_rotations)


def test_hashing_in_steps():
    assert factors(64) == [64] and factors(128) == [16, 8] and factors(4096) == [64, 64] and factors(2) == [2]
    x = torch.randn(1, 1, 2000, 16)
    bucket = buckets_of(x, torch.randn(1, 16, 1, directions(128)), 128)
    assert bucket.min() >= 0 and bucket.max() < 128 and len(bucket.unique()) > 100


def test_chunks_of_a_small_example():
    bucket = torch.tensor([[1, 0, 1, -1, 1, 0]])
    aligned = Chunks.of(bucket, 2, 2, "aligned")
    assert aligned.order[0].view(-1, 2).tolist() == [[1, 5], [0, 2], [4, -1], [-1, -1], [-1, -1]]
    assert aligned.looks_back[0].tolist() == [False, False, True, False, False]
    by_bucket = Chunks.of(bucket, 2, 2, "sorted")
    assert by_bucket.order[0].view(-1, 2).tolist() == [[1, 5], [0, 2], [4, -1]]
    assert by_bucket.looks_back[0].tolist() == [False, True, True]
    assert Chunks.of(bucket, 2, 2, "around").looks_back[0].tolist() == [True, True, True]


def test_compiles_whole():
    module = made()
    q, k, v = draw(64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), module(q, k, v))


def test_the_config_is_the_default_and_cost_grows_as_n_log_n():
    module = configured("reformer")
    assert (module.chunk, module.buckets, module.rounds, module.cut) == (64, None, 4, "aligned")
    for length in (10, 200, 5000):
        cost = module.cost(length)
        assert 0 < cost.live_pairs <= cost.visited_pairs
    assert module.cost(0).visited_pairs == 0
    long, longer = (module.cost(1 << bits).total_flops for bits in (16, 20))
    assert longer < 20 * long


def test_the_cost_of_a_round_is_about_what_is_found():
    module = made(rounds=1, buckets=8, max_length=2048)
    q, k, _ = draw(1000, batch=1)
    seen = int((module.attention_weights(q, k) > 0).sum())
    assert 0.5 < module.cost(1000).live_pairs / seen < 2.0


WRONG = [
    ({"chunk": 20}, r"attention\.chunk = 20 is no multiple of 16"),
    ({"buckets": 12}, r"attention\.buckets = 12 is no power of two; give 8 or 16"),
    ({"buckets": 1}, r"attention\.buckets = 1; give a power of two, 2 or more"),
    ({"buckets": 512}, r"attention\.buckets = 512 is more than the 200 tokens"),
    ({"rounds": 0}, r"attention\.rounds = 0"),
    ({"chunks": "paper"}, r"attention\.chunks = 'paper' is unknown; choose one of aligned, sorted, transformers"),
    ({"seed": -1}, r"attention\.seed = -1"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(change, message):
    with pytest.raises(ConfigError, match=message):
        variants.reformer(**PLACE | change)


@pytest.mark.parametrize("chunks", ["aligned", "sorted", "transformers"])
def test_a_chunk_longer_than_the_sequence_costs_no_more_than_the_sequence(chunks):
    short, long = (made(chunks=chunks, chunk=chunk, buckets=2) for chunk in (64, 1024))
    q, k, v = draw(50)
    assert long(q, k, v).equal(short(q, k, v)) and long.cost(50) == short.cost(50)
    assert long.order(q).order.shape == short.order(q).order.shape


def test_sequences_longer_than_rotations_were_drawn_for_are_refused():
    module = variants.reformer(**PLACE | {"chunk": 16, "max_length": 64}).double()
    q, k, v = draw(400)
    module.train()(q, k, v)  # rotations are drawn by the call
    with pytest.raises(CallError, match=r"q has 400 tokens, .* give a larger max_length, or a number of buckets"):
        module.eval()(q, k, v)
