"""`attention=routing`: against the paper's algorithm written densely, centroids, causality, cost, errors."""

import pytest
import torch
import torch.nn.functional as F
from chosen_by_content import PLACE, compare, configured, dense, draw

import longspan.attention as variants
from longspan.attention.centroids import Centroids
from longspan.config.errors import ConfigError


def made(**change):
    return variants.routing(**PLACE | {"clusters": 5} | change).double().eval()


def balanced_oracle(module, q, k, v, ends):
    """Algorithm 1 of the paper, a head at a time."""
    B, H, T, D = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        rows, w = [], module.members(ends[b])
        for h in range(H):
            x, y = F.rms_norm(q[b, h], (D,), eps=1e-6), F.rms_norm(k[b, h // 2], (D,), eps=1e-6)
            y = x if module.causal else y
            sums, times = torch.zeros(T, D, dtype=q.dtype), torch.zeros(T)
            for centroid in module.centroids.means[h]:
                q_idx, k_idx = ((z @ centroid)[: ends[b]].topk(min(w, ends[b])).indices.sort().values for z in (x, y))
                live = q_idx[:, None] >= k_idx if module.causal else torch.ones(len(q_idx), len(k_idx), dtype=torch.bool)
                part = dense(x[q_idx][None, None], y[k_idx][None, None], v[b, h // 2][k_idx][None, None], live[None, None])[
                    0, 0
                ]
                sums = sums.index_add(0, q_idx, part)
                times = times.index_add(0, q_idx, live.any(-1).float())
            rows.append(sums / times.clamp(min=1)[:, None])
        out = out + F.pad(torch.stack(rows)[None], (0, 0, 0, 0, 0, 0, b, B - 1 - b))
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("length", "lengths", "window"), [(60, None, None), (47, [47, 20], 12), (40, [40, 5], None), (3, None, None)]
)
def test_balanced_clusters_are_the_papers(causal, length, lengths, window):
    module = made(membership="balanced", causal=causal, window=window)
    q, k, v = draw(length)
    out = module(q, k, v, lengths=None if lengths is None else torch.tensor(lengths))
    compare(out, balanced_oracle(module, q, k, v, lengths or [length] * 2), (q, v) if causal else (q, k, v))


def test_balanced_clusters_keep_segments_apart():
    module = made(membership="balanced", causal=False)
    q, k, v = draw(50)
    segments = torch.arange(50).expand(2, 50) // 13
    documents = [[x[:, :, first : first + 13] for x in (q, k, v)] for first in range(0, 50, 13)]
    expected = torch.cat([balanced_oracle(module, *parts, [parts[0].shape[2]] * 2) for parts in documents], 2)
    compare(module(q, k, v, segments=segments), expected, (q, k, v))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "lengths", "segmented"), [(90, None, False), (70, [70, 31], True)])
def test_each_token_sees_its_nearest_cluster(causal, length, lengths, segmented):
    module = made(membership="nearest", causal=causal, window=16)
    q, k, v = draw(length)
    ends = lengths or [length] * 2
    segments = torch.arange(length).expand(2, length) // 9 if segmented else torch.zeros(2, length).long()
    x = F.rms_norm(q, (16,), eps=1e-6)
    cluster = module.centroids(x).argmax(-1)  # (B, H, T)
    i = torch.arange(length)
    exists = (i < torch.tensor(ends)[:, None])[:, None]
    same = (cluster[..., :, None] == cluster[..., None, :]) & exists[..., None] & exists[..., None, :]
    same = same & (segments[:, None, :, None] == segments[:, None, None, :])
    rank = (same & (i[:, None] > i)).sum(-1) // 16  # the chunk of each token in its cluster and document
    distance = rank[..., :, None] - rank[..., None, :]
    mask = same & (distance >= 0) & (distance <= 1)
    mask = mask & (i[:, None] >= i) if causal else mask
    out = module(q, k, v, lengths=torch.tensor(ends), segments=segments)
    compare(out, dense(x, x, v.repeat_interleave(2, 1), mask), (q, v))


def test_causal_membership_does_not_depend_on_later_tokens():
    q, k, v = draw(100)
    for membership, same in (("auto", True), ("nearest", True), ("balanced", False)):
        module = made(membership=membership)
        before = module(q, k, v)[:, :, :60]
        later = q.detach().clone()
        later[:, :, 60:] = later[:, :, 60:].flip(-1)
        assert torch.allclose(module(later, k, v)[:, :, :60], before) == same


def test_centroids_move_to_the_mean_of_their_own():
    centroids = Centroids(1, 2, 16, 0.9, seed=0)
    axes = torch.eye(16)
    centroids.means.copy_(axes[None, :2])
    x = torch.stack([axes[0] + axes[2], axes[0] + axes[2], axes[1], -axes[1]])[None, None]
    exists = torch.tensor([[True, True, True, False]])
    for _ in range(2):  # twice, as where activations are recomputed
        centroids.gather(x, centroids(x).argmax(-1), exists)
    centroids.end_step()
    assert int(centroids.steps) == 1
    torch.testing.assert_close(centroids.means[0], torch.stack([F.normalize(axes[0] + axes[2], dim=0), axes[1]]))
    before = centroids.means.clone()
    centroids.end_step()
    assert centroids.means.equal(before)  # nothing was gathered
    for _ in range(200):
        centroids.gather(near := -x[:, :, :1] + 0.1 * axes[1], centroids(near).argmax(-1), None)
        centroids.end_step()
    assert centroids.means[0, 1, 0] < -0.5  # the nearest one follows slowly


def test_devices_move_their_centroids_together(monkeypatch):
    alone, together = (Centroids(1, 2, 16, 0.9, seed=0) for _ in range(2))
    first, second = torch.randn(2, 1, 1, 30, 16).unbind(0)
    both = torch.cat((first, second), 2)
    alone.gather(both, alone(both).argmax(-1), None)
    alone.end_step()
    together.gather(second, together(second).argmax(-1), None)
    others = iter([together.sums.clone(), together.counts.clone()])
    together.sums.zero_()
    together.counts.zero_()
    together.gather(first, together(first).argmax(-1), None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(next(others)))
    together.end_step()
    torch.testing.assert_close(together.means, alone.means)


def test_centroids_stay_put_until_the_step_ends():
    module = made().float().train()
    q, k, v = (x.detach().float() for x in draw(64))
    before = module.centroids.means.clone()
    module(q, k, v)
    assert module.centroids.means.equal(before)
    module.centroids.end_step()
    assert not module.centroids.means.equal(before)
    assert sorted(module.state_dict()) == ["centroids.means", "centroids.steps"]
    module.eval()(q, k, v)
    assert module.centroids.counts.sum() == 0


def test_a_task_ends_the_steps(tmp_path, train, monkeypatch):
    moved = []
    end_step = Centroids.end_step
    monkeypatch.setattr(Centroids, "end_step", lambda self: (end_step(self), moved.append(int(self.steps))))
    small = ["model.layers=2", "model.width=32", "model.heads=2", "data.max_length=64", "data.batch_size=2", "logger=none"]
    train(
        tmp_path,
        "attention=routing",
        "experiment=demo",
        *small,
        "trainer.fast_dev_run=2",
        "model.activation_checkpointing=true",
    )
    assert moved == [1, 1, 2, 2]  # two layers, two steps


def test_weights_of_a_map_add_up():
    module = made(membership="balanced", causal=False)
    q, k, _ = draw(50)
    total = module.attention_weights(q, k).sum(-1)
    assert ((total - 1).abs().lt(1e-9) | total.abs().lt(1e-9)).all()


def test_compiles_whole():
    for membership in ("balanced", "nearest"):
        module = made(membership=membership)
        q, k, v = draw(64)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(q, k, v), module(q, k, v))


def test_the_config_is_the_default_and_states_its_cost():
    module = configured("routing")
    assert (module.clusters, module.window, module.balanced, module.shares_qk) == (14, None, False, True)
    assert made(causal=False).balanced and not made(causal=False).shares_qk
    for membership in ("balanced", "nearest"):
        module = made(membership=membership, causal=False)
        for length in (10, 130):
            cost = module.cost(length)
            assert 0 < cost.live_pairs <= cost.visited_pairs and cost.other_flops > 0
        assert module.cost(0).visited_pairs == 0
    assert made(membership="balanced", causal=False).cost(100).live_pairs == 4 * 5 * 20 * 20


WRONG = [
    ({"clusters": 0}, r"attention\.clusters = 0; give clusters, 1 or more"),
    ({"clusters": 300}, r"attention\.clusters = 300 is more than the 200 tokens"),
    ({"clusters": None, "max_length": None}, r"attention\.clusters = null needs a known longest sequence"),
    ({"window": 0}, r"attention\.window = 0"),
    ({"window": 201}, r"attention\.window = 201 is more than the 200 tokens"),
    ({"membership": "soft"}, r"attention\.membership = 'soft' is unknown; choose one of auto, balanced, nearest"),
    ({"decay": 1.0}, r"attention\.decay = 1.0 is not a fraction"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(change, message):
    with pytest.raises(ConfigError, match=message):
        variants.routing(**PLACE | change)
