"""Makes patterns and variants known to transformers by name."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import longspan.attention as variants
from longspan.attention import PatternAttention
from longspan.config.errors import CallError
from longspan.integrations.huggingface.attention import Choice, attention_function, mask_function
from longspan.models.pretrained_network import looks_up_attention
from longspan.patterns import Pattern, PatternError, parse_pattern

PREFIX = "longspan:"
# of classes whose config is that of an encoder with a decoder; what they hold of these is looked at for itself
ENCODERS_ALONE = ("EncoderModel", "ForTokenClassification")
VARIANTS = ("full", "local", "dilated", "strided", "fixed", "global", "random", "longformer", "bigbird")


@dataclass(frozen=True)
class Written:
    """The same pattern in each layer."""

    pattern: Pattern

    def at(self, heads: int, causal: bool, layer: int) -> Pattern:
        return self.pattern


@dataclass(frozen=True)
class Variant:
    """The pattern that `attention=name` has in a layer, with its default settings."""

    name: str

    def at(self, heads: int, causal: bool, layer: int) -> Pattern:
        return _of_variant(self.name, heads, causal, layer)


@functools.lru_cache(maxsize=1024)
def _of_variant(name: str, heads: int, causal: bool, layer: int) -> Pattern:
    make = getattr(variants, "global_" if name == "global" else name)
    module: PatternAttention = make(heads=heads, head_dim=64, causal=causal, layer=layer)
    return module.pattern


def register() -> None:
    """Makes `attn_implementation="longspan_local"`, `"longspan_bigbird"`, ... and `"longspan:" + expression` work in any model
    of transformers 5 that takes `attn_implementation`. Calling it again changes nothing.

    An expression is a pattern as it is written in Python, such as `"longspan:Local(4096) | Global(first=4)"`, or the name of
    a variant, `"longspan:bigbird"`. Padding masks, packed positions, grouped key heads, dropout, dynamic caches and gradient
    checkpointing are served; whether a layer is causal, and a sliding window of its own, are the model's.

    Models that `longspan.load(...).save_pretrained(folder)` wrote are known to the Auto classes and pipelines after it.

    Raises:
        ImportError: transformers is not installed, or older than 5.
        PatternError: when a model is loaded with an expression that is no pattern.
        CallError: when a model is loaded whose code computes its attention itself (DeBERTa, BLOOM, Falcon, MPT) or attends from
            one sequence to another (BART, T5), and in a forward pass that asks for what a pattern cannot serve.
    """
    try:
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface, PreTrainedModel
    except ImportError as error:
        raise ImportError("longspan.integrations.huggingface needs transformers 5: pip install 'transformers>=5'") from error
    for interface, make in ((AttentionInterface, attention_function), (AttentionMaskInterface, mask_function)):
        if not isinstance(interface._global_mapping, _ByName):
            interface._global_mapping = _ByName(interface._global_mapping, make)
        for name in VARIANTS:
            interface.register(f"longspan_{name}", make(f"longspan_{name}", Variant(name)))
    _check_models_as_they_are_made(PreTrainedModel)
    from longspan.integrations.huggingface.models import register_models

    register_models()


def chosen(text: str) -> Choice:
    """What a variant's name or an expression chooses.

    Raises:
        PatternError: neither.
    """
    text = text.strip()
    if text in VARIANTS:
        return Variant(text)
    if text.isidentifier() and text.islower():
        raise PatternError(
            "pattern",
            repr(text),
            f"is no variant made of a pattern alone; write a pattern, or choose from {', '.join(VARIANTS)}",
        )
    return Written(parse_pattern(text))


def _check_models_as_they_are_made(base: Any) -> None:
    """Models that never look an implementation up would attend as before, in silence: they are refused where transformers
    checks the name, for which it has no hook."""
    own = base.get_correct_attn_implementation
    if getattr(own, "checks_longspan", False):
        return

    @functools.wraps(own)
    def checked(model: Any, requested_attention: str | None, *args: Any, **rest: Any) -> str:
        name: str = own(model, requested_attention, *args, **rest)
        if not name.startswith("longspan"):
            return name
        both = model.config.is_encoder_decoder and not type(model).__name__.endswith(ENCODERS_ALONE)
        if both and type(model).__name__.endswith("Stack") and hasattr(model.config, "relative_attention_num_buckets"):
            raise CallError(  # one side of a model such as LongT5
                f'attn_implementation="{name}" cannot serve this model: {type(model).__name__} adds a bias to each pair '
                '(position_bias); use attn_implementation="eager"'
            )
        if both or getattr(model.config, "add_cross_attention", False):
            raise CallError(
                f'attn_implementation="{name}" cannot serve this model: {type(model).__name__} attends from one sequence to '
                "another (cross-attention), and a pattern relates positions of one; load an encoder or a decoder alone"
            )
        if not looks_up_attention(model):
            raise CallError(
                f'attn_implementation="{name}" cannot serve this model: {type(model).__name__} computes its attention itself, '
                "in code of its own, which no implementation reaches; convert(model) serves Longformer and BigBird"
            )
        return name

    checked.checks_longspan = True  # type: ignore[attr-defined]
    base.get_correct_attn_implementation = checked


class _ByName(dict):
    """transformers' table of implementations, which makes an entry for each expression that is asked for."""

    def __init__(self, known: dict[str, Any], make: Any) -> None:
        super().__init__(known)
        super().__setitem__(_AnyExpression(PREFIX), None)  # transformers looks a name up in the list of keys first
        self.make = make

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.startswith(PREFIX) and name != PREFIX)

    def __missing__(self, name: Any) -> Any:
        if not (isinstance(name, str) and name.startswith(PREFIX)):
            raise KeyError(name)
        self[name] = made = self.make(name, chosen(name.removeprefix(PREFIX)))
        return made

    def __or__(self, other: Any) -> Any:
        return {**self, **other}


class _AnyExpression(str):
    """A key that equals each `longspan:` expression that is a pattern."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and other.startswith(PREFIX) and not isinstance(other, _AnyExpression):
            chosen(other.removeprefix(PREFIX))  # a wrong one says what is wrong with it
            return True
        return self is other

    __hash__ = str.__hash__
