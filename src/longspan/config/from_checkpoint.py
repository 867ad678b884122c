"""Checks the config of a checkpoint before anything of it is imported, resolved or built.

A checkpoint may come from a stranger, and a config can name any function of any installed package. So it may name
only the targets that `conf/` itself uses, each in its own group; its strings are literal; and its sizes must be those
of the weights beside it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from longspan.config.errors import CheckpointError
from longspan.nearest import did_you_mean, nearest
from longspan.values import is_whole

# modules whose targets the user trusts, separated by commas: LONGSPAN_TRUST=my_package,other.module
TRUST = "LONGSPAN_TRUST"

# What the files of conf/ name, by group; a test holds the two equal.
TARGETS: dict[str, frozenset[str]] = {
    "attention": frozenset(
        {
            "longspan.attention.adaptive_span",
            "longspan.attention.bigbird",
            "longspan.attention.block_table",
            "longspan.attention.compressed",
            "longspan.attention.dilated",
            "longspan.attention.dsa",
            "longspan.attention.fixed",
            "longspan.attention.full",
            "longspan.attention.gated_delta",
            "longspan.attention.gated_linear",
            "longspan.attention.global_",
            "longspan.attention.hybrid",
            "longspan.attention.learned",
            "longspan.attention.linear",
            "longspan.attention.linformer",
            "longspan.attention.local",
            "longspan.attention.local2d",
            "longspan.attention.longformer",
            "longspan.attention.mixed_heads",
            "longspan.attention.moba",
            "longspan.attention.nsa",
            "longspan.attention.per_head",
            "longspan.attention.performer",
            "longspan.attention.random",
            "longspan.attention.reformer",
            "longspan.attention.retention",
            "longspan.attention.routing",
            "longspan.attention.sinkhorn",
            "longspan.attention.strided",
            "longspan.attention.synthesizer",
        }
    ),
    "callbacks": frozenset(
        {
            "lightning.pytorch.callbacks.EarlyStopping",
            "lightning.pytorch.callbacks.LearningRateMonitor",
            "longspan.cost.measured.MeasuredCost",
            "longspan.training.callbacks.averaging.AveragedWeights",
            "longspan.training.callbacks.best_checkpoint.BestCheckpoint",
            "longspan.training.callbacks.lr_finder.FindLearningRate",
            "longspan.training.callbacks.pattern_sketch.PatternSketch",
            "longspan.training.callbacks.progress.progress_bar",
        }
    ),
    "data": frozenset(
        {
            "longspan.data.AssociativeRecallDataModule",
            "longspan.data.GenomicBenchmarkDataModule",
            "longspan.data.DNALongBenchDataModule",
            "longspan.data.CompressionDataModule",
            "longspan.data.ContactMapDataModule",
            "longspan.data.RegulatoryActivityDataModule",
            "longspan.data.TranscriptionInitiationDataModule",
            "longspan.data.MemorisationDataModule",
            "longspan.data.InContextRecallDataModule",
            "longspan.data.CommonWordsDataModule",
            "longspan.data.VariableTrackingDataModule",
            "longspan.data.DistractedNeedleDataModule",
            "longspan.data.RetrievalDataModule",
            "longspan.data.PathfinderDataModule",
            "longspan.data.ListOpsDataModule",
            "longspan.data.ImageClassificationDataModule",
            "longspan.data.GenomeDataModule",
            "longspan.data.InductionDataModule",
            "longspan.data.LargeTextDataModule",
            "longspan.data.NeedleDataModule",
            "longspan.data.PairedDataModule",
            "longspan.data.SelectiveCopyDataModule",
            "longspan.data.ShapesDataModule",
            "longspan.data.SequenceClassificationDataModule",
            "longspan.data.SequenceRegressionDataModule",
            "longspan.data.SpeciesDataModule",
            "longspan.data.StreamedClassificationDataModule",
            "longspan.data.StreamedTextDataModule",
            "longspan.data.TextDataModule",
            "longspan.data.TokenLabellingDataModule",
        }
    ),
    "logger": frozenset(
        {
            "lightning.pytorch.loggers.CSVLogger",
            "lightning.pytorch.loggers.TensorBoardLogger",
            "longspan.records.mlflow_logger",
            "longspan.records.wandb_logger",
        }
    ),
    "model": frozenset({"longspan.models.encoder_decoder", "longspan.models.huggingface", "longspan.models.transformer"}),
    "optimizer": frozenset({"longspan.tasks.adamw", "torch.optim.SGD"}),
    "scheduler": frozenset({"longspan.tasks.warmup_constant", "longspan.tasks.warmup_cosine"}),
    "task": frozenset(
        {
            "longspan.tasks.Compression",
            "longspan.tasks.ContactRegression",
            "longspan.tasks.LanguageModelling",
            "longspan.tasks.MaskedModelling",
            "longspan.tasks.PairClassification",
            "longspan.tasks.Recall",
            "longspan.tasks.SequenceClassification",
            "longspan.tasks.SequenceRegression",
            "longspan.tasks.SequenceToSequence",
            "longspan.tasks.TokenLabelling",
            "longspan.tasks.TrackRegression",
        }
    ),
    "trainer": frozenset({"lightning.pytorch.Trainer", "longspan.training.sharding.ShardedBlocks"}),
}

# far above what anybody trains, far below what fills a machine before the weights are compared
LARGEST = {
    "model.layers": 4096,
    "model.width": 2**17,
    "model.heads": 4096,
    "model.kv_heads": 4096,
    "model.head_dim": 256,
    "model.mlp_width": 2**20,
    "model.stem": 4096,
    "model.decoder_layers": 4096,
    "data.max_target_length": 2**24,
    "data.max_length": 2**24,
    "data.batch_size": 2**16,
    "data.num_workers": 256,
    "trainer.devices": 4096,
    "trainer.num_nodes": 4096,
}
LARGEST_ATTENTION = 2**24  # any number of attention.*: tokens, blocks or heads
TOKENS_A_BATCH = 2**27
DEEPEST, MOST_VALUES, LONGEST_TEXT = 24, 100_000, 1_000_000
_OWN_KEYS = ("_target_", "_partial_")


def check_checkpoint_config(config: Any, where: str) -> dict[str, Any]:
    """The config, where it may be built from.

    Args:
        where: names the checkpoint in messages, such as ``checkpoint=x.ckpt``.

    Raises:
        CheckpointError: it is no resolved config, names a target that `conf/` does not use (see `TRUST`), or asks for more
            than any real run does.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{where} holds a config of type {type(config).__name__}; give a checkpoint of train.py")
    trusted = [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]
    for count, (path, key, value) in enumerate(_values(config, where)):
        if count > MOST_VALUES:
            raise CheckpointError(f"{where} holds a config of more than {MOST_VALUES:,} values; train.py writes none like that")
        if key == "_target_":
            _check_target(path, value, where, trusted)
        elif key.startswith("_") and key.endswith("_") and key not in _OWN_KEYS:
            raise CheckpointError(f"{where} has {path} in its config, which train.py does not use")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_size(path, value, where)
    _check_groups(config, where)
    return dict(config)


def _values(node: Any, where: str, path: str = "", key: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """(path, last key, value) of everything in the config; raises for what is not plain."""
    if depth > DEEPEST:
        raise CheckpointError(f"{where} holds a config nested more than {DEEPEST} deep, at {path[:80]}")
    if isinstance(node, Mapping):
        for name, value in node.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{where} holds a config with the key {name!r} at {path or 'its top'}, which is no text")
            inner = f"{path}.{name}" if path else name
            yield inner, name, value
            yield from _values(value, where, inner, name, depth + 1)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield f"{path}[{index}]", "", value
            yield from _values(value, where, f"{path}[{index}]", "", depth + 1)
    elif isinstance(node, str):
        if len(node) > LONGEST_TEXT:
            raise CheckpointError(f"{where} holds a text of {len(node):,} characters at {path}")
    elif node is not None and not isinstance(node, (bool, int, float)):
        raise CheckpointError(f"{where} holds a {type(node).__name__} at {path}; a config has plain values only")


def _check_target(path: str, target: Any, where: str, trusted: list[str]) -> None:
    group = re.split(r"[.\[]", path, maxsplit=1)[0]
    allowed = TARGETS.get(group, frozenset())
    if not isinstance(target, str):
        raise CheckpointError(f"{where} has {path}={target!r}, which is no name")
    if target in allowed or any(target == name or target.startswith(f"{name}.") for name in trusted):
        return
    near = nearest(target, allowed) if target.startswith("longspan.") else None
    raise CheckpointError(
        f"{where} has {path}={target}, which no file of conf/{group}/ names.{did_you_mean(near)} A checkpoint could run any "
        f"code that way, so nothing was imported. If the code is your own, name its module: {TRUST}="
        f"{target.rpartition('.')[0] or target}"
    )


def _check_size(path: str, value: float, where: str) -> None:
    largest = LARGEST.get(path, LARGEST_ATTENTION if path.startswith("attention.") else None)
    if largest is not None and not abs(value) <= largest:
        raise CheckpointError(f"{where} has {path}={value} in its config; more than {largest:,} is not built from a checkpoint")


def _check_groups(config: Mapping[str, Any], where: str) -> None:
    for group in ("model", "attention", "data", "task", "trainer"):
        if not isinstance(config.get(group), Mapping):
            raise CheckpointError(f"{where} holds a config without {group}; give a checkpoint that train.py wrote")
    for key in ("layers", "width", "heads"):
        value = config["model"].get(key)
        if value is not None and not is_whole(value):
            raise CheckpointError(f"{where} has model.{key}={value!r} in its config, which is no whole number")
    length, batch = config["data"].get("max_length"), config["data"].get("batch_size")
    if isinstance(length, int) and isinstance(batch, int) and length * batch > TOKENS_A_BATCH:
        raise CheckpointError(
            f"{where} has data.max_length={length} and data.batch_size={batch}: more than {TOKENS_A_BATCH:,} tokens a batch"
        )


def check_weights(config: Mapping[str, Any], facts: Any, weights: Any, where: str) -> None:
    """Raises CheckpointError where a size of the config is above that of the weights, which the file bounds.

    A config of ten million layers beside the weights of four would otherwise be built before anything compares them.
    """
    if not isinstance(facts, Mapping):
        raise CheckpointError(f"{where} says nothing of the data it was trained on; give a checkpoint that train.py wrote")
    _check_facts(facts, where)
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{where} holds a state_dict that is not weights by name; give a checkpoint that train.py wrote")
    blocks = {int(found[1]) for name in weights if (found := re.search(r"\.blocks\.(\d{1,9})\.", f".{name}"))}
    _check_at_most("model.layers", config["model"].get("layers"), len(blocks), where)
    shapes: list[Any] = [getattr(w, "shape", ()) for name, w in weights.items() if name.endswith("embedding.weight")]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise CheckpointError(f"{where} holds no embedding of a transformer; give a checkpoint that train.py wrote")
    _check_at_most("vocab_size", facts.get("vocab_size"), max(shape[0] for shape in shapes), where)
    _check_at_most("target_vocab_size", facts.get("target_vocab_size"), max(shape[0] for shape in shapes), where)
    _check_at_most("model.width", config["model"].get("width"), shapes[0][1], where)


def _check_at_most(what: str, stated: Any, held: int, where: str) -> None:
    if stated is None:
        return
    if not is_whole(stated, most=held):
        raise CheckpointError(f"{where} says that {what} is {stated}, and its weights have {held}: they do not belong together")


def _check_facts(facts: Mapping[str, Any], where: str) -> None:
    for count, (path, _, value) in enumerate(_values(facts, where)):
        too_many = count > MOST_VALUES
        if too_many or (isinstance(value, (int, float)) and not isinstance(value, bool) and value > LARGEST_ATTENTION):
            raise CheckpointError(f"{where} says of its data {path}={value!s:.40}, more than is built from a checkpoint")


def literal(node: Any) -> Any:
    """The same config for OmegaConf, with ``${...}`` escaped, so that it stays text."""
    if isinstance(node, Mapping):
        return {key: literal(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [literal(value) for value in node]
    if isinstance(node, str) and "${" in node:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", node)
    return node
