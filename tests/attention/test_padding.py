"""A token's output follows from its own sequence: not from padding, nor from what shares its batch or its row."""

import csv

import pytest
import torch

import longspan.attention as variants
from longspan.data import SequenceClassificationDataModule
from longspan.models import Encoder
from longspan.tasks import SequenceClassification

torch.set_num_threads(1)
LONGEST, SHORT, LONG = 128, 45, 77
PLACE = {"heads": 2, "kv_heads": 1, "head_dim": 16, "max_length": LONGEST}
SETTINGS = {
    "full": [{}],
    "local": [{"window": 9}],
    "dilated": [{"window": 4, "dilation": 3}],
    "longformer": [{"window": 9, "global_positions": (0, 40, 60)}],
    "bigbird": [{"block_size": 16, "window_blocks": 1, "random_blocks": 1, "global_blocks": 2}],
    "random": [{"block_size": 16, "blocks": 1}],
    "block_table": [{"block_size": 16}],
    "strided": [{"stride": 7, "window": 5}],
    "fixed": [{"stride": 16, "summary": 3}],
    "global_": [{"first": 4}],
    "per_head": [{"patterns": ["local", {"name": "bigbird", "block_size": 16, "random_blocks": 1}]}],
    "learned": [{"block_size": 16, "strides": [24], "stride_from": 2, "density": 0.5}],
    "adaptive_span": [{"initial_span": 40, "ramp": 9}],
    "moba": [{"block_size": 16, "top_k": 2}],
    "dsa": [{"top_k": 5, "indexer_width": 16}],
    "nsa": [{"block_size": 16, "top_k": 3, "compressed_block": 16, "compressed_stride": 8, "window": 9}],
    "reformer": [{"chunk": 16, "chunks": cut, "rounds": 2} for cut in ("aligned", "sorted", "transformers")],
    "routing": [
        {"clusters": 4, "window": window, "membership": membership}
        for window in (None, 16)
        for membership in ("balanced", "nearest")
    ],
    "sinkhorn": [{"block_size": 16}],
    "local2d": [{"window": 5}],
    "linear": [{}],
    "performer": [{}],
    "linformer": [{}],
    "synthesizer": [{}],
    "compressed": [{}],
    "retention": [{}],
    "gated_linear": [{}],
    "gated_delta": [{}],
    "hybrid": [{}],
    "mixed_heads": [{"parts": ["local"]}],
}
CAUSAL_ONLY = ("retention", "gated_linear", "gated_delta", "hybrid", "mixed_heads")
CASES = [(name, settings) for name, several in SETTINGS.items() for settings in several]


def every_direction(test):
    """Both ways and causal, where the variant has it."""
    both = [(*case, causal) for case in CASES for causal in (False, True)]
    both = [(n, s, c) for n, s, c in both if not (n in CAUSAL_ONLY and not c) and not (n == "linformer" and c)]
    ids = [f"{name} {' '.join(map(str, settings.values()))} {causal}" for name, settings, causal in both]
    return pytest.mark.parametrize(("name", "settings", "causal"), both, ids=ids)(test)


def test_every_variant_is_among_the_cases():
    assert {word for word in variants.__all__ if word.islower()} <= set(SETTINGS)


def made(name, settings, causal):
    if name == "dsa" and not causal:
        pytest.skip("dsa is causal")
    torch.manual_seed(0)
    return getattr(variants, name)(**PLACE, **settings, causal=causal).eval()


@every_direction
def test_an_output_does_not_depend_on_padding(name, settings, causal):
    module = made(name, settings, causal)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, LONG, 16, generator=generator) for heads in (2, 1, 1))
    lengths = torch.tensor([SHORT, LONG])
    together = module(q, k, v, lengths=lengths)
    assert not getattr(module, "depends_on_padding", False)
    alone = module(*(x[:1, :, :SHORT] for x in (q, k, v)), lengths=torch.tensor([SHORT]))
    torch.testing.assert_close(together[:1, :, :SHORT], alone[:, :, :SHORT], atol=1e-5, rtol=1e-5)
    # nor on what the padding and the other sequence hold
    for x in (q, k, v):
        x[0, :, SHORT:] = float("nan")
        x[1] = x[1].flip(-1)
    torch.testing.assert_close(module(q, k, v, lengths=lengths)[0, :, :SHORT], together[0, :, :SHORT], atol=1e-5, rtol=1e-5)
    plain = module(*(x[:1, :, :SHORT] for x in (q, k, v)))
    torch.testing.assert_close(alone[:, :, :SHORT], plain, atol=1e-5, rtol=1e-5)


@every_direction
def test_gradients_do_not_depend_on_padding(name, settings, causal):
    module = made(name, settings, causal)
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(3, heads, LONG, 16, generator=generator) for heads in (2, 1, 1, 2)]
    lengths, wide = torch.tensor([SHORT, LONG, 0]), torch.tensor([SHORT, 2**40, -3])
    beyond = (torch.arange(LONG) >= lengths[:, None])[:, None, :, None]
    results = []
    for ends, dirt in ((lengths, 0.0), (wide, float("nan")), (lengths, float("inf"))):
        q, k, v, grad = (x.masked_fill(beyond, dirt) for x in tensors)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        module.zero_grad()
        out = module(*leaves, lengths=ends)
        out.backward(grad)
        weights = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]  # queries may be keys too
        results.append([out.detach(), *grads, *weights])
        assert not any(x.masked_select(beyond).any() for x in results[-1][:4])
    for other in results[1:]:
        for right, got in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, right, atol=1e-6, rtol=1e-5)


@every_direction
def test_packed_documents_do_not_see_each_other(name, settings, causal):
    module = made(name, settings, causal)
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, heads, LONG, 16, generator=generator) for heads in (2, 1, 1))
    segments = (torch.arange(LONG) >= SHORT).long()[None] * 5
    before = module(q, k, v, segments=segments)
    other = [x.clone() for x in (q, k, v)]
    for x in other:
        x[:, :, :SHORT] = torch.randn(x[:, :, :SHORT].shape, generator=generator)
    torch.testing.assert_close(module(*other, segments=segments)[:, :, SHORT:], before[:, :, SHORT:], atol=1e-5, rtol=1e-5)
    if name in ("dsa", "moba", "nsa", "reformer", "routing", "sinkhorn"):  # each document as if it stood alone
        for part in (slice(0, SHORT), slice(SHORT, LONG)):
            alone = module(*(x[:, :, part] for x in (q, k, v)))
            torch.testing.assert_close(before[:, :, part], alone, atol=1e-5, rtol=1e-5)


def test_scattered_and_padded_documents_are_taken_apart_with_their_gradients():
    module = made("routing", {"clusters": 3, "membership": "balanced"}, False).double()
    q, k, v = (torch.randn(2, heads, 40, 16, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    segments = torch.stack([torch.arange(40) % 3 - 1, torch.arange(40) // 17 * 1000])
    lengths = torch.tensor([40, 30])
    out = module(q, k, v, lengths=lengths, segments=segments)
    expected = torch.zeros_like(out)
    for b, end in enumerate(lengths.tolist()):
        for name in segments[b].unique():
            own = ((segments[b] == name) & (torch.arange(40) < end)).nonzero()[:, 0]
            if len(own):
                alone = module(*(x[b : b + 1, :, own] for x in (q, k, v)))
                expected = expected.index_put((torch.tensor(b), torch.arange(2)[:, None], own), alone[0])
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for ours, theirs in zip(*(torch.autograd.grad(o, (q, k, v), weight) for o in (out, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("padding") / "texts.csv"
    generator = torch.Generator().manual_seed(3)
    with path.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for n in range(24):
            letters = torch.randint(97, 123, (int(torch.randint(5, 120, (), generator=generator)),), generator=generator)
            rows.writerow(["".join(map(chr, letters)), "ab"[n % 2]])
    return path


@pytest.mark.parametrize(("name", "settings"), [case for case in CASES if case[0] not in CAUSAL_ONLY])
def test_a_prediction_does_not_depend_on_its_batch(name, settings, table):
    if name == "dsa":
        pytest.skip("dsa is causal, and an encoder is not")

    def attention(**place):
        return getattr(variants, name)(**place, **settings)

    torch.manual_seed(4)
    model = Encoder(vocab_size=260, max_length=LONGEST, attention=attention, layers=2, width=32, heads=2)
    task = SequenceClassification(model, num_classes=2).eval()
    with torch.no_grad():
        task.model.head.projection.weight.mul_(20.0)
    found = []
    for batch_size in (1, 8):
        data = SequenceClassificationDataModule(
            path=str(table), batch_size=batch_size, max_length=LONGEST, pad_to_multiple=16, seed=0, vocabulary="bytes"
        )
        with torch.no_grad():
            found.append(torch.cat([task.predict_step(b, 0)["probabilities"] for b in data.predict_dataloader()]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert not model.depends_on_padding  # so that batches need no width of each sequence
