"""What attention attended to: kept in the record of a run, drawn head by head."""

import io
from pathlib import Path

import pytest
import torch
from chosen_by_content import PLACE, draw
from warm_process import run

import longspan.attention as variants
from longspan.config.errors import ConfigError
from longspan.inference.attention_map import attention_weights
from longspan.records import Record
from longspan.training.callbacks.attention_weights import CaughtWeights, weights_figure
from longspan.training.callbacks.pattern_sketch import shades

CONF = Path(__file__).parents[2] / "conf"
SCRIPT = Path(__file__).parents[2] / "scripts" / "attention_map.py"
SMALL = ["model.layers=2", "model.width=32", "model.heads=2", "data.max_length=128", "data.batch_size=2", "logger=none"]


def test_the_record_of_a_run_holds_what_was_attended_to(tmp_path, train):
    settings = ["attention.block_size=16", "attention.top_k=2"]
    train(
        tmp_path,
        "attention=moba",
        *settings,
        "experiment=demo",
        *SMALL,
        "trainer=debug",
        "trainer.max_steps=3",
        "data.max_validation_windows=4",
    )
    held = Record.load(tmp_path).extra["pattern"]
    assert [one["layers"] for one in held] == [[0], [1]]
    for one in held:
        assert one["causal"] and 1 < one["length"] <= 128 and len(one["rows"]) <= 64
        assert all(set(row[query + 1 :]) <= {"0"} and row[query] != "0" for query, row in enumerate(one["rows"]))


def test_the_last_sequence_heard_is_mapped():
    module = variants.moba(block_size=16, top_k=2, **PLACE).eval()
    q, k, v = (x.detach().float() for x in draw(64))
    caught = CaughtWeights()
    caught.listen([torch.nn.Identity(), module])
    module(q, k, v, lengths=torch.tensor([40, 64]))
    caught.stop()
    module(q * 0, k * 0, v)  # not heard
    [(layer, live)] = caught.live_shares()
    assert layer == 1 and live.shape == (40, 40)
    expected = (module.attention_weights(q[:1], k[:1], lengths=torch.tensor([40])) > 1e-4)[0, :, :40, :40].float().mean(0)
    torch.testing.assert_close(live, expected)
    assert caught.live_shares() == []


def test_shades_are_means_of_cells():
    live = torch.zeros(5, 5)
    live[0, 0] = live[4, 4] = 1.0
    assert shades(live, 3) == ["800", "000", "00f"]


@pytest.mark.parametrize(("heads", "rows"), [(1, 1), (5, 1), (9, 2)])
def test_a_figure_has_a_panel_a_head(heads, rows):
    figure = weights_figure([("layer 0", torch.rand(heads, 20, 20)), ("layer 3", torch.rand(heads, 20, 20))], "moba")
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == [f"layer {layer}, head {n}" for layer in (0, 3) for n in range(heads)]
    assert len({axes.get_subplotspec().rowspan.start for axes in panels}) == 2 * rows
    figure.savefig(io.BytesIO(), format="png")


def test_a_checkpoint_is_drawn(tmp_path, train):
    settings = ["attention.block_size=16", "attention.top_k=2"]
    train(
        tmp_path, "attention=moba", *settings, "experiment=demo", *SMALL, "trainer.max_steps=1", "data.max_validation_windows=4"
    )
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    found = attention_weights(str(checkpoint), [], CONF, tokens=100)
    assert [layer for layer, _ in found.layers] == [0, 1] and found.causal and found.variant == "moba"
    for _, weights in found.layers:
        assert weights.shape == (2, 100, 100)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 100))
        # two blocks of 16 at most, the own one always
        assert all(int((row > 0).view(-1).nonzero().div(16, rounding_mode="floor").unique().numel()) <= 2 for row in weights[0])
    words = [f"checkpoint={checkpoint}", f"output={tmp_path / 'maps' / 'moba.png'}", "tokens=64"]
    done = run(SCRIPT, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "maps" / "moba.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["learned", "adaptive_span", "local"])
@pytest.mark.parametrize("causal", [True, False])
def test_weights_of_a_pattern_are_those_of_its_pairs(name, causal):
    settings = {"learned": {"block_size": 16}, "adaptive_span": {"initial_span": 20}, "local": {"window": 30}}[name]
    module = getattr(variants, name)(**PLACE | settings | {"causal": causal}).double()
    q, k, v = (x.detach() for x in draw(70))
    for _ in range(2):
        weights = module.attention_weights(q, k, lengths=torch.tensor([70, 33]))
        mask = module.pattern.mask(70, heads=4, causal=causal)
        assert ((weights > 1e-7)[0] == mask).all() and not weights[1, :, 33:].any() and not weights[1, :, :, 33:].any()
        full = weights @ v.repeat_interleave(2, 1)
        torch.testing.assert_close(full, module.eval()(q, k, v, lengths=torch.tensor([70, 33])))
        if hasattr(module, "harden"):
            module.harden()


def test_learned_patterns_are_drawn_too(tmp_path, train):
    words = ["attention=adaptive_span", "attention.ramp=8", "experiment=demo", *SMALL]
    train(tmp_path, *words, "trainer.max_steps=2", "data.max_validation_windows=4")
    found = attention_weights(str(tmp_path / "checkpoints" / "last.ckpt"), [], CONF, tokens=60)
    assert [layer for layer, _ in found.layers] == [0, 1]
    for _, weights in found.layers:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 60))
        at = torch.arange(60)
        assert not weights[:, at[:, None] - at > 20].any()  # spans have hardly moved from 0


def test_what_cannot_be_drawn_is_named(tmp_path, train):
    train(tmp_path, "attention=local", "experiment=demo", *SMALL, "trainer.max_steps=1", "data.max_validation_windows=4")
    checkpoint = str(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match="tokens=9000 must be a number from 1 to 4096"):
        attention_weights(checkpoint, [], CONF, tokens=9000)
