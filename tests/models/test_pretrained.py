"""Models of transformers as backbones: the same outputs with full attention, another attention where it is asked for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longspan.attention import full, learned, local, nsa
from longspan.config.compose import config_for
from longspan.config.errors import CallError, ConfigError
from longspan.integrations.huggingface import register
from longspan.models import HeadedModel, LanguageModellingHead, huggingface, token_head

transformers = pytest.importorskip("transformers")
CONF = Path(__file__).parents[2] / "conf"
SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=8),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=260, n_embd=32, n_layer=3, n_head=2, n_positions=64),
}
ENCODERS = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "modernbert": lambda: transformers.ModernBertConfig(**SIZES, local_attention=8, global_attn_every_n_layers=2),
}
T = 24
TEXT = "We the people of the United States, in order"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: a folder as save_pretrained writes it}, tiny and at random."""
    made = {}
    for autos, kinds in ((transformers.AutoModelForCausalLM, DECODERS), (transformers.AutoModelForMaskedLM, ENCODERS)):
        for name, config in kinds.items():
            torch.manual_seed(0)
            model = autos.from_config(config())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))  # biases and norms too
            made[name] = str(tmp_path_factory.mktemp(name))
            model.save_pretrained(made[name])
    return made


def headed(folder, name, attention=full, **settings):
    sizes = {"causal": name in DECODERS, "vocab_size": 260, "max_length": 64, "path": folder}
    backbone = huggingface(**{**sizes, **settings}, attention=attention)
    return HeadedModel(backbone, token_head(backbone, LanguageModellingHead, tied=True)).eval()


def theirs(folder, name):
    auto = transformers.AutoModelForCausalLM if name in DECODERS else transformers.AutoModelForMaskedLM
    return auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def batch():
    torch.manual_seed(1)
    lengths = torch.tensor([T, 13])
    return torch.randint(3, 260, (2, T)), lengths, (torch.arange(T) < lengths[:, None])


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_their_own_attention_gives_their_outputs(folders, name):
    """Full attention in the layers that have it; sliding windows (mistral, modernbert) stay where nothing replaces them."""
    tokens, lengths, real = batch()
    kept = {"mistral": [], "modernbert": [0]}.get(name)  # [] is no choice a config allows: nothing is replaced
    model = headed(folders[name], name, replaced_layers=kept)
    with torch.no_grad():
        ours = model(tokens, lengths=lengths)
        right = theirs(folders[name], name)(input_ids=tokens, attention_mask=real.long()).logits
    assert (ours - right)[real].abs().max() < 1e-4 * right[real].abs().max()
    assert model.causal == (name in DECODERS)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_window_is_their_model_with_a_window(folders, name):
    tokens, _, _ = batch()
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    seen = (i >= j) & (i - j < 5)
    mask = torch.zeros(T, T).masked_fill(~seen, torch.finfo(torch.float32).min).expand(2, 1, T, T)
    model = headed(folders[name], name, lambda **sizes: local(window=5, **sizes))
    with torch.no_grad():
        right = theirs(folders[name], name)(input_ids=tokens, attention_mask=mask).logits
        ours = model(tokens)
    assert (ours - right).abs().max() < 1e-4 * right.abs().max()


def test_it_is_handed_out_for_training(folders):
    sizes = {"causal": True, "vocab_size": 260, "max_length": 64, "path": folders["gpt2"], "attention": full}
    assert all(module.training for module in huggingface(**sizes).modules()), "or its dropout would be off"


def test_a_network_that_takes_no_positions_says_who_decodes(folders):
    class Placeless(torch.nn.Module):
        def forward(self, input_ids, use_cache=False, longspan_call=None):
            raise AssertionError("decoding was refused before")

    backbone = headed(folders["llama"], "llama").backbone
    backbone.body = Placeless()
    with pytest.raises(CallError, match=r"Placeless takes no positions .*save_transformers"):
        backbone.new_cache(2)


def test_packed_documents_are_apart(folders):
    tokens, _, _ = batch()
    segments = (torch.arange(T) >= 10).long().expand(2, T)
    model = headed(folders["llama"], "llama")
    changed = tokens.clone()
    changed[:, :10] = tokens[:, :10].flip(1)
    with torch.no_grad():
        one, other = model(tokens, segments=segments), model(changed, segments=segments)
    assert torch.equal(one[:, 10:], other[:, 10:]) and not torch.equal(one[:, :10], other[:, :10])


def test_projections_that_a_pretrained_model_lacks_are_refused(folders):
    with pytest.raises(ConfigError, match="branch_keys"):
        headed(folders["llama"], "llama", lambda **s: nsa(block_size=16, gates="token", **s))


def test_some_layers_alone(folders):
    asked = []

    def attention(**sizes):
        asked.append(sizes["layer"])
        return local(window=5, **sizes)

    model = headed(folders["llama"], "llama", attention, replaced_layers=[0, -1])
    assert asked == [0, 2]
    assert [type(module).__name__ for module in model.backbone.attention_modules()] == [
        "LocalAttention",
        "FullAttention",
        "LocalAttention",
    ]
    with pytest.raises(ConfigError, match=r"replaced_layers=\[3\]: the model has layers 0 to 2"):
        headed(folders["llama"], "llama", replaced_layers=[3])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_costs_are_those_of_a_counter(folders, name):
    model = headed(folders[name], name)
    cost = model.cost(T)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(3, 260, (1, T)))
    attention = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "mm" not in str(op))
    dense = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    assert dense == cost.other_flops, (attention, counter.get_flop_counts()["Global"])
    pairs = T * (T + 1) // 2 if model.causal else T * T
    assert cost.live_pairs == 3 * 2 * pairs
    if model.causal:
        kv_heads = 1 if name == "llama" else 2
        held = 3 * 4 * kv_heads * 16 * T  # two bytes a number of keys and values
        assert cost.state_bytes == held == headed(folders[name], name, lambda **s: nsa(block_size=16, **s)).cost(T).state_bytes
    assert cost.parameters == sum(p.numel() for p in theirs(folders[name], name).parameters())


@pytest.mark.filterwarnings("error::FutureWarning:transformers")
def test_gradients_reach_learned_gates_through_recomputed_layers(folders):
    def attention(**sizes):
        return learned(block_size=16, density=0.5, **sizes)

    tokens, lengths, _ = batch()
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = headed(folders["llama"], "llama", attention, activation_checkpointing=recompute).train()
        torch.manual_seed(2)
        model(tokens, lengths=lengths).square().mean().backward()
        own = {name: p.grad for name, p in model.named_parameters() if ".attentions." in name and p.grad is not None}
        assert own, "the gates are trained"
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("llama", {"vocab_size": 100}, "has 260 token ids, the data 100; give its own, data.vocabulary="),
        ("llama", {"vocab_size": 265}, "has 260 token ids, the data 265"),
        ("llama", {"max_length": 128}, "was made for 64 tokens"),
        ("llama", {"path": "/nowhere"}, "there is no such folder; put the model"),
    ],
)
def test_what_cannot_be_is_said(folders, name, settings, says):
    sizes = {"causal": True, "vocab_size": 260, "max_length": 64, "path": folders[name], "attention": full}
    with pytest.raises(ConfigError, match=says):
        huggingface(**{**sizes, **settings})


@pytest.mark.parametrize("kind", ["BartConfig", "T5Config"])
def test_an_encoder_decoder_is_refused(kind, tmp_path):
    getattr(transformers, kind)().save_pretrained(tmp_path)
    for causal in (True, False):
        with pytest.raises(ConfigError, match="is an encoder-decoder; choose an encoder or a decoder"):
            huggingface(causal=causal, vocab_size=260, max_length=64, path=str(tmp_path), attention=full)


@pytest.mark.parametrize("name", ["T5EncoderModel", "UMT5EncoderModel"])
def test_an_encoder_alone_is_refused_for_its_bias(name, tmp_path):
    """It would be loaded with a decoder of random weights, if at all."""
    config = getattr(transformers, name.replace("EncoderModel", "Config"))(
        vocab_size=260, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4
    )
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"model\.path=.*: {name} adds a bias to each pair .*choose another model"):
        huggingface(causal=False, vocab_size=260, max_length=64, path=str(tmp_path), attention=full)


def test_what_our_own_attention_refuses_is_refused_with_its_reason(tmp_path):
    register()
    sizes = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertConfig(**sizes, is_decoder=True, add_cross_attention=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"attends from one sequence to another \(cross-attention\).*choose another model"):
        huggingface(causal=False, vocab_size=260, max_length=64, path=str(tmp_path), attention=full, pretrained=False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_specials_that_a_tokenizer_lacks_get_rows_of_their_own(folders, name):
    """A vocabulary adds a mask to a decoder's tokenizer: one id more than the checkpoint has."""
    tokens, _, _ = batch()
    model, right = headed(folders[name], name, vocab_size=262), theirs(folders[name], name)
    with torch.no_grad():
        ours, wanted = model(tokens), right(input_ids=tokens).logits
        assert ours.shape[-1] == 262 and (ours[..., :260] - wanted).abs().max() < 1e-4 * wanted.abs().max()
        added = ours[..., 260:] - wanted.mean(-1, keepdim=True)
        assert added.abs().max() < 1e-4 * wanted.abs().max(), "the mean embedding has the mean logit"
        torch.testing.assert_close(
            model.backbone.embedding.weight[260:], right.get_input_embeddings().weight.mean(0).expand(2, -1)
        )
        assert model(torch.full_like(tokens, 261)).isfinite().all()


@pytest.mark.parametrize("reachable", [True, False])
def test_a_hub_name_without_a_network_is_looked_for_in_the_cache_alone(monkeypatch, reachable):
    asked = []

    def from_pretrained(name, **settings):
        asked.append((name, settings["local_files_only"]))
        raise OSError("no such model")

    monkeypatch.setattr("longspan.data.readers.hub.hub_reachable", lambda: reachable)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(
        ConfigError, match=r"path='nobody/nothing': there is no such folder in .*, and transformers cannot load it"
    ):
        huggingface(path="nobody/nothing", causal=True, vocab_size=260, max_length=64, attention=full)
    assert asked == [("nobody/nothing", not reachable)]


def test_models_that_change_scores_are_refused(tmp_path):
    transformers.Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=16).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="caps its scores"):
        huggingface(causal=True, vocab_size=260, max_length=64, path=str(tmp_path), attention=full, pretrained=False)


@pytest.mark.parametrize("kind", ["BloomConfig", "FalconConfig"])
@pytest.mark.parametrize("registered", [False, True])
def test_models_whose_code_has_its_own_attention_are_refused(tmp_path, kind, registered):
    """They would train with the attention that they have, under the name of another."""
    if registered:  # then transformers refuses it as it makes the model
        register()
    getattr(transformers, kind)(vocab_size=260, hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path
    )
    with pytest.raises(ConfigError, match=r"can be replaced|computes its attention itself"):
        huggingface(causal=True, vocab_size=260, max_length=64, path=str(tmp_path), attention=full, pretrained=False)


class Code:
    def __reduce__(self):
        return print, ("a stranger's code ran",)


@pytest.mark.parametrize("damage", ["cut", "pickle", "sizes"])
def test_weights_that_cannot_be_read_are_named(folders, tmp_path, capsys, damage):
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "damaged"))
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:3000])
    elif damage == "pickle":
        weights.unlink()
        torch.save({"x": Code()}, folder / "pytorch_model.bin")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))
    with pytest.raises(ConfigError, match=r"model\.path=.*transformers cannot load it \(.+\)"):
        huggingface(causal=True, vocab_size=260, max_length=64, path=str(folder), attention=full)
    assert "stranger" not in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named_before_torch_is_loaded(tmp_path):
    from longspan.config.command_line import check_job

    with pytest.raises(ConfigError, match=r"model\.path=/nowhere: no such folder"):
        check_job(CONF, ["model=huggingface", "model.path=/nowhere"], output_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        check_job(CONF, ["model=huggingface", f"model.path={tmp_path}"], output_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model\.path"):
        check_job(CONF, ["model=huggingface"], output_dir=tmp_path / "run")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_sparsified_model_goes_back_to_transformers(folders, tmp_path, kind):
    import longspan
    from longspan.integrations.huggingface import register
    from longspan.training.run import run

    task = "language_modelling" if kind == "llama" else "masked_modelling"
    words = [f"model.path={folders[kind]}", f"task={task}", "attention=local", "attention.window=16", "data.max_length=64"]
    short = ["trainer.max_steps=2", "trainer.val_check_interval=2", "data.max_validation_windows=2", "data.max_test_windows=2"]
    run(config_for(["experiment=sparsify", *words, *short, "logger=none", "callbacks.progress=null"], tmp_path / "run", CONF))
    trained = longspan.load(tmp_path / "run")
    folder = trained.save_transformers(tmp_path / "out")
    (line,) = re.findall(r'attn_implementation="(.*)"', (folder / "README.md").read_text())
    register()
    auto = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModelForMaskedLM
    again = auto.from_pretrained(folder, attn_implementation=line).eval()
    tokens = torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)(TEXT).input_ids])
    assert list(trained.vocabulary.encode(TEXT)) == tokens[0, int(kind == "llama") :].tolist()
    with torch.no_grad():
        right, started = trained.model(tokens), headed(folders[kind], kind)(tokens)
        torch.testing.assert_close(again(tokens).logits, right, rtol=1e-4, atol=1e-5)
    assert (right - started).abs().max() > 1e-4, "the weights are those that were trained"


def test_what_transformers_has_no_class_for_stays(folders, tmp_path):
    import longspan
    from longspan.training.run import run

    words = [
        "model.layers=1",
        "model.width=32",
        "model.heads=2",
        "trainer.max_steps=1",
        "logger=none",
        "callbacks.progress=null",
    ]
    run(config_for([*words, "data.max_length=64", "data.max_test_windows=1"], tmp_path / "run", CONF))
    with pytest.raises(TypeError, match=r"own blocks; save_pretrained writes it"):
        longspan.load(tmp_path / "run").save_transformers(tmp_path / "out")


@pytest.mark.parametrize(
    ("attention", "settings"),
    [("local", ["window=16"]), ("learned", ["block_size=16", "density=0.5"]), ("nsa", ["block_size=16"])],
)
def test_the_experiment_trains_and_its_checkpoint_evaluates(folders, tmp_path, attention, settings):
    from longspan.inference.evaluate import evaluate
    from longspan.training.run import run

    words = [
        "experiment=sparsify",
        f"model.path={folders['llama']}",
        f"attention={attention}",
        "data.max_length=64",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "data.max_validation_windows=2",
        "data.max_test_windows=2",
        "logger=none",
        "callbacks.progress=null",
        *(f"attention.{setting}" for setting in settings),
    ]
    run(config_for(words, tmp_path / "run", CONF))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "complete" and record["cost"]["total_flops"]["value"] > 0
    if attention != "learned":  # whose gates are parameters of its own
        return
    (best,) = (tmp_path / "run" / "checkpoints").glob("best*.ckpt")
    again = evaluate(str(best), [], CONF)
    assert again.accuracy["perplexity"].value == pytest.approx(record["accuracy"]["perplexity"]["value"], rel=1e-5)
