"""A Hugging Face decoder or encoder with its weights, whose layers attend as `attention` says.

What a layer has beside attention stays the model's own: projections, positions, norms, MLPs. Attention modules of this project
take its queries, keys and values, so that variants with parameters (learned, nsa) train with it.

Legend: B batch, T tokens, C model width, H heads, Hkv key/value heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from longspan.attention import full, local
from longspan.config.errors import CallError, wrong_value
from longspan.cost import Cost, linear_flops, total_cost
from longspan.models.attention_choice import AttentionChoice, attention_of_each_layer
from longspan.models.cache import ModelCache
from longspan.models.pretrained_network import SPECIALS, add_embeddings, loaded_network, looks_up_attention
from longspan.models.settings import TransformerSettings
from longspan.models.transformer import check_tokens, parameter_count

IMPLEMENTATION = "longspan_layers"
OURS = "longspan_attention"  # where an attention module of transformers finds the one that stands in for it
LEAST_SHARE = 0.9  # of a checkpoint's token ids that the data's vocabulary must have; some are padded to a round number

# what changes scores or logits in a way that attention variants and heads do not have
UNSERVED = {
    "attn_logit_softcapping": "caps its scores",
    "final_logit_softcapping": "caps its logits",
    "logit_scale": "scales its logits",
    "logits_scaling": "scales its logits",
    "relative_attention_num_buckets": "adds a bias to each pair",
    "alibi": "adds a bias to each pair",
    "is_encoder_decoder": "is an encoder with a decoder",
}


@dataclass(frozen=True)
class Call:
    """What a forward pass hands to each attention: transformers passes it on without looking at it."""

    lengths: Tensor | None
    segments: Tensor | None
    cache: ModelCache | None = None


@dataclass(frozen=True)
class Served:
    """What stands in for the attention of layer `number`, whether it replaces it, and the sliding window that the layer had."""

    attention: Any
    number: int
    replaced: bool
    window: int | None


class PretrainedTransformer(nn.Module):
    """A network of transformers as a backbone: tokens [B, T] to hidden states [B, T, C].

    Args:
        network: a model of an Auto class, loaded with `attn_implementation=IMPLEMENTATION`.
        name: what the user called it, for messages.
        max_length: longest sequence in tokens.
        attention: see `attention_of_each_layer`.
        replaced: numbers of the layers that take it; None means all. The others keep the network's own attention, all pairs
            or a sliding window, computed by this project's kernels.

    Raises:
        ConfigError: what a variant cannot take the place of; a layer that is not there.
    """

    network: Any

    def __init__(
        self, network: Any, *, name: str, max_length: int, attention: AttentionChoice, replaced: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        config = network.config
        for key, problem in UNSERVED.items():
            if getattr(config, key, None) not in (None, False, 1.0):
                raise wrong_value("model.path", name, f"this {type(network).__name__} {problem} ({key}); choose another model")
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and max_length > positions:
            raise wrong_value("model.path", name, f"was made for {positions} tokens; give data.max_length={positions} or less")
        body = network.base_model
        self.name, self.max_length = name, max_length
        self.embedding = body.get_input_embeddings()
        self.body = body
        self.vocab_size, self.width = self.embedding.weight.shape
        self.__dict__["_head"] = head_of(network)  # registered by the task that uses it alone
        self.__dict__["network"] = network  # as transformers saves it; its parameters are those of body and head
        layers = attention_layers(body)
        if not layers or not looks_up_attention(network):
            raise wrong_value(
                "model.path", name, f"no attention of {type(network).__name__} can be replaced; choose another model"
            )
        self.causal = bool(getattr(layers[0], "is_causal", True))
        self.settings = _settings(config, len(layers))
        chosen = _chosen(replaced, len(layers))
        makers = attention_of_each_layer(attention, len(layers))
        modules = []
        for number, layer in enumerate(layers):
            window = _window(layer)
            make = makers[number] if number in chosen else _own_attention(window, self.causal)
            module = make(
                heads=self.settings.heads,
                kv_heads=self.settings.key_value_heads,
                head_dim=self.settings.head_width,
                causal=self.causal,
                layer=number,
                max_length=max_length,
            )
            if getattr(module, "value_heads", self.settings.key_value_heads) != self.settings.key_value_heads:
                raise wrong_value(
                    "attention.branch_keys",
                    getattr(module, "branch_keys", True),
                    "and attention.gates=token need projections that a pretrained model does not have; give false and query",
                )
            # a reference: its parameters are those of `attentions`
            layer.__dict__[OURS] = Served(module, number, number in chosen, window)
            modules.append(module)
        self.attentions = nn.ModuleList(modules)

    def forward(
        self,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> Tensor:
        """Hidden states [B, T, C] of tokens [B, T]; see `Transformer.forward`.

        Raises:
            CallError: see `Transformer.forward`.
        """
        check_tokens(self, tokens, lengths, segments)
        if cache is not None:
            return self._decode(tokens, lengths, segments, cache)
        return self.body(input_ids=tokens, use_cache=False, longspan_call=Call(lengths, segments)).last_hidden_state

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ModelCache:
        """See `Transformer.new_cache`.

        Raises:
            CallError: a network that takes no positions, or an attention that cannot decode.
        """
        if "position_ids" not in inspect.signature(self.body.forward).parameters:
            raise CallError(
                f"{self.name}: {type(self.body).__name__} takes no positions and so does not decode here; give it back to "
                "transformers, which does: longspan.load(RUN).save_transformers(FOLDER)"
            )
        weight = self.embedding.weight
        device, dtype = weight.device if device is None else device, weight.dtype if dtype is None else dtype
        caches = [module.new_cache(batch, device=device, dtype=dtype) for module in cast(Any, self.attention_modules())]
        return ModelCache(caches, None, torch.zeros(batch, dtype=torch.int64, device=device))

    @torch.no_grad()
    def _decode(self, tokens: Tensor, lengths: Tensor | None, segments: Tensor | None, cache: ModelCache) -> Tensor:
        """Hidden states [B, n, C] of tokens [B, n] after those in the cache, which takes them in."""
        n = tokens.shape[1]
        if segments is not None:
            raise CallError("segments with a cache: packed documents are not decoded; give each a sequence of its own")
        lengths = None if lengths is None else lengths.to(cache.positions).clamp(0, n)
        longest = int((cache.positions + (n if lengths is None else lengths)).max())
        if longest > self.max_length:
            raise CallError(
                f"{longest} tokens with those in the cache, but the model was built for max_length={self.max_length}; "
                "give fewer, or build it for longer"
            )
        places, call = cache.places(n, self.max_length), Call(lengths, None, cache)
        hidden = self.body(input_ids=tokens, position_ids=places, use_cache=False, longspan_call=call).last_hidden_state
        cache.advance(n, lengths)
        return hidden

    def token_head(self) -> nn.Module:
        """The network's own head over its vocabulary.

        Raises:
            ConfigError: it has none that is known.
        """
        head = self.__dict__["_head"]
        if head is None:
            fix = f"{type(self.body).__name__} has no head that predicts tokens; give a language model, or another task"
            raise wrong_value("model.path", self.name, fix)
        return PretrainedHead(head)

    def attention_modules(self) -> list[nn.Module]:
        """The attention module of each layer, first to last."""
        return list(self.attentions)

    @property
    def depends_on_padding(self) -> bool:
        """See `Transformer.depends_on_padding`."""
        return any(getattr(module, "depends_on_padding", False) for module in self.attentions)

    def cost(self, length: int) -> Cost:
        """Cost of one sequence of `length` tokens, forward, no head: attention, and every dense layer."""
        modules = cast(Any, self.attention_modules())
        attention = total_cost(modules, length)
        other = sum(linear_flops(length, *shape) for shape in _dense_shapes(self.body))
        # a variant that states nothing decodes by all keys and values, as in this project's own blocks
        silent = sum(not module.cost(length).state_bytes for module in modules) if self.causal else 0
        held = silent * 4 * self.settings.key_value_heads * self.settings.head_width * length
        return attention + Cost(other_flops=other, parameters=parameter_count(self) - attention.parameters, state_bytes=held)


class PretrainedHead(nn.Module):
    """A network's head: hidden states [..., C] to logits [..., V]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.projection = head

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.projection(hidden)

    def cost(self, length: int) -> Cost:
        return Cost(other_flops=sum(linear_flops(length, *shape) for shape in _dense_shapes(self.projection)))


def huggingface(
    *,
    causal: bool,
    vocab_size: int,
    max_length: int,
    attention: AttentionChoice,
    path: str,
    pretrained: bool = True,
    network: Mapping[str, Any] | None = None,
    replaced_layers: Sequence[int] | None = None,
    activation_checkpointing: bool = False,
) -> PretrainedTransformer:
    """Builds the model of `conf/model/huggingface.yaml`.

    Args:
        causal: which kind of model the task wants; a decoder stays one.
        vocab_size: token ids of the data, which must be those of the checkpoint; up to four specials behind them, which the
            checkpoint's tokenizer lacks, get the mean embedding.
        path: a folder that `save_pretrained` wrote, or a name on the Hub.
        pretrained: False takes sizes alone from it, with weights at random.
        network: what the `config.json` of that folder says, as `save_pretrained` keeps it: nothing is read from `path`, and
            weights are at random until those that were saved with it are loaded.

    Raises:
        ConfigError: no such model, one that cannot be served, or data of another vocabulary.
    """
    _register(path)
    model = loaded_network(path, causal=causal, pretrained=pretrained, content=network, implementation=IMPLEMENTATION)
    known = int(model.get_input_embeddings().weight.shape[0])
    if known < vocab_size <= known + SPECIALS:
        add_embeddings(model, known, vocab_size)
    backbone = PretrainedTransformer(model, name=path, max_length=max_length, attention=attention, replaced=replaced_layers)
    if not LEAST_SHARE * backbone.vocab_size <= vocab_size <= backbone.vocab_size:
        fix = f"has {backbone.vocab_size} token ids, the data {vocab_size}; give its own, data.vocabulary={path}"
        raise wrong_value("model.path", path, fix)
    if activation_checkpointing:
        recompute = getattr(backbone.body, "activation_checkpointing_enable", None)  # its name from transformers 5.24 on
        (recompute or backbone.body.gradient_checkpointing_enable)({"use_reentrant": False})
    return backbone


def _register(path: str) -> None:
    try:
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface
    except ImportError as error:
        raise wrong_value("model.path", path, "needs transformers 5: pip install 'longspan[huggingface]'") from error
    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def attention_layers(body: nn.Module) -> list[Any]:
    """The attention modules of a network that call transformers' attention interface, first layer to last."""
    found = [
        module
        for module in body.modules()
        if "Attention" in type(module).__name__ and isinstance(getattr(module, "layer_idx", None), int)
    ]
    return sorted(found, key=lambda module: module.layer_idx)


def head_of(network: Any) -> nn.Module | None:
    """The module that turns hidden states of a language model into logits; None where there is none, or none is known."""
    for name in ("lm_head", "embed_out", "cls"):
        if isinstance(getattr(network, name, None), nn.Module):
            return getattr(network, name)
    if isinstance(getattr(network, "head", None), nn.Module) and isinstance(getattr(network, "decoder", None), nn.Linear):
        return nn.Sequential(network.head, network.decoder)  # ModernBERT
    return None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    longspan_call: Call | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """query [B, H, T, D], key and value [B, Hkv, T, D] -> [B, T, H, D], and no weights."""
    ours: Served | None = module.__dict__.get(OURS)
    where = type(module).__name__
    if ours is None or longspan_call is None:
        raise wrong_value("model.path", where, "does not hand arguments on to its attention; choose another model")
    for argument in ("softcap", "s_aux", "position_bias"):
        if rest.get(argument) is not None:
            raise wrong_value("model.path", where, f"changes its scores ({argument}); choose another model")
    if not ours.replaced and rest.get("sliding_window") != ours.window:
        raise wrong_value("model.path", where, f"has a window of {rest.get('sliding_window')} here; replace all its layers")
    usual = query.shape[-1] ** -0.5  # what attention modules scale by
    if scaling is not None and abs(scaling / usual - 1) > 1e-6:
        query = query * (scaling / usual)
    lengths, cache = longspan_call.lengths, longspan_call.cache
    if cache is not None:
        out = ours.attention.decode(query, key, value, cache.layers[ours.number], lengths=lengths)
    else:
        out = ours.attention(query, key, value, lengths=lengths, segments=longspan_call.segments)
    return out.transpose(1, 2), None  # (B, T, H, D)


def _no_mask(*_: Any, **__: Any) -> None:
    """Padding and packed documents are the attention modules' own matter."""


def _window(layer: Any) -> int | None:
    """The sliding window of a layer's own attention; where the module does not say, it passes on the config's."""
    window = getattr(layer, "sliding_window", getattr(getattr(layer, "config", None), "sliding_window", None))
    return window if isinstance(window, int) else None


def _own_attention(window: int | None, causal: bool) -> Any:
    """Computes a layer's own attention: all pairs, or a sliding window of distances below `window`."""
    if window is None:
        return full
    return lambda **sizes: local(window=window if causal else 2 * window - 1, **sizes)


def _settings(config: Any, layers: int) -> TransformerSettings:
    heads = config.num_attention_heads
    return TransformerSettings(
        layers=layers,
        width=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _chosen(replaced: Sequence[int] | None, layers: int) -> set[int]:
    """Layers by number, those below 0 counted from the last.

    Raises:
        ConfigError: a layer that is not there.
    """
    if replaced is None:
        return set(range(layers))
    for number in replaced:
        if not -layers <= number < layers:
            raise wrong_value(
                "model.replaced_layers", list(replaced), f"the model has layers 0 to {layers - 1}; -1 is the last"
            )
    return {number % layers for number in replaced}


def _dense_shapes(module: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of each dense layer; GPT-2's is a class of its own, with the same two sizes in its weight."""
    return [
        (int(part.weight.size(0)), int(part.weight.size(1)))  # type: ignore[operator, union-attr]
        for part in module.modules()
        if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
    ]
