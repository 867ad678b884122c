"""hybrid and mixed_heads: other variants in layers and in groups of heads, by names, from the command line too."""

import pytest
import torch
from chosen_by_content import PLACE, configured, draw

import longspan.attention as variants
from longspan.config.errors import ConfigError
from longspan.records.schema import Record


def test_layers_by_names():
    kinds = [type(variants.hybrid(**PLACE | {"layer": n})).__name__ for n in range(5)]
    assert kinds == ["GatedDeltaNet"] * 3 + [
        "FullAttention" if hasattr(variants, "FullAttention") else kinds[3],
        "GatedDeltaNet",
    ]
    layers = [{"name": "local", "window": 7, "times": 2}, "linear"]
    built = [variants.hybrid(layers=layers, **PLACE | {"layer": n}) for n in range(3)]
    assert [module.pattern.window for module in built[:2]] == [7, 7] and built[2].feature_map == "elu1"


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("full", r"attention.layers = 'full' is not a list; give one, such as \[gated_delta\*3, full\]"),
        ([], "is not a list"),
        (["locl"], r"attention.layers\[0\] = 'locl' names no variant. Did you mean local\?"),
        (["full*0"], "times must be a whole number"),
        ([{"name": "local", "windw": 3}], r"attention.layers\[0\].windw is not a setting of local. Did you mean window\?"),
        ([{"name": "local", "window": 0}], r"attention.layers\[0\].window"),
    ],
)
def test_wrong_layers_are_named(layers, words):
    with pytest.raises(ConfigError, match=words):
        variants.hybrid(layers=layers, **PLACE)


def test_the_command_line_as_it_is_typed(tmp_path, train):
    typed = ["attention=hybrid", "attention.layers=[gated_delta*3,local]"]
    config = train(
        tmp_path,
        *typed,
        "model.layers=1",
        "model.width=32",
        "model.heads=2",
        "data.max_length=32",
        "data.batch_size=2",
        "trainer.max_steps=1",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "logger=none",
    )
    record = Record.load(tmp_path / "record.json")
    assert record.status == "complete" and config["attention"]["layers"] == ["gated_delta*3", "local"]
    assert record.cost["density"].value is None and record.cost["state_bytes"].value > 0


def test_heads_have_their_variants():
    torch.manual_seed(0)
    parts = ["gated_delta", {"name": "local", "window": 9}]
    module = variants.mixed_heads(parts=parts, **PLACE).double()
    q, k, v = draw(60)
    lengths = torch.tensor([60, 41])
    out = module(q, k, v, lengths=lengths)
    torch.testing.assert_close(out[:, :2], module.parts[0](q[:, :2], k[:, :1], v[:, :1], lengths=lengths))
    alone = variants.local(window=9, **PLACE)
    torch.testing.assert_close(out[:, 2:], alone(q, k, v, lengths=lengths)[:, 2:])
    out.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module.cost(60) == sum((part.cost(60) for part in module.parts[1:]), module.parts[0].cost(60))
    assert module.attention_weights(q, k).shape == (2, 4, 60, 60)


def test_parts_that_cannot_share():
    with pytest.raises(ConfigError, match="holds 3 parts for 2 key/value heads"):
        variants.mixed_heads(parts=["local", "full", "linear"], **PLACE)
    with pytest.raises(ConfigError, match=r"parts\[1\] = 'nsa' wants more projections than keys and values"):
        variants.mixed_heads(parts=["local", {"name": "nsa", "branch_keys": True}], **PLACE)


def test_a_part_may_make_its_keys_from_its_queries():
    parts = [{"name": "reformer", "chunk": 16, "buckets": 4}, {"name": "routing", "clusters": 3}]
    module = variants.mixed_heads(parts=parts, **PLACE).double().eval()
    q, k, v = (x.detach() for x in draw(60))
    out = module(q, k, v)
    for n, part in enumerate(module.parts):
        heads = slice(2 * n, 2 * n + 2)
        torch.testing.assert_close(out[:, heads], part(q[:, heads], q[:, heads], v[:, n : n + 1]))
    assert module.attention_weights(q, k).shape == (2, 4, 60, 60)
    torch.testing.assert_close(module(q, q, v), out)
    assert module.shares_qk, "so that a model makes no projection that nothing reads"
    assert not variants.mixed_heads(parts=[parts[0], "full"], **PLACE).shares_qk


@pytest.mark.parametrize("parts", [["gated_delta", "linear"], [{"name": "reformer", "chunk": 16}, "full"]])
def test_decoding_goes_to_the_parts(parts):
    module = variants.mixed_heads(parts=parts, **PLACE).double().eval()
    q, k, v = (x.detach() for x in draw(50))
    cache, found = module.new_cache(2, dtype=torch.float64), []
    for first, stop in ((0, 20), (20, 21), (21, 50)):
        found.append(module.decode(*(x[:, :, first:stop] for x in (q, k, v)), cache))
    torch.testing.assert_close(torch.cat(found, 2), module(q, k, v), atol=1e-5, rtol=1e-5)
    assert cache.positions.tolist() == [50, 50] and cache.nbytes > sum(part.nbytes for part in cache.parts)


def test_configs_are_defaults():
    assert type(configured("hybrid")) is type(variants.hybrid(**PLACE))
    assert configured("mixed_heads").counts == [2, 2]


def test_what_patterns_hold():
    place = PLACE | {"max_length": 300}
    held = {name: getattr(variants, name)(**place).cost(200).state_bytes for name in ("full", "local")}
    assert held["full"] == 200 * 2 * 2 * 16 * 2  # keys and values of two heads, two bytes a number
    assert variants.local(window=30, **place).cost(200).state_bytes == 29 * 2 * 2 * 16 * 2 < held["local"]
