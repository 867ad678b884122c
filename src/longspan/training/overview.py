"""Says on one screen what a run is about to do, before it trains: data, model, attention and its cost, device, files."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from longspan.attention.parts import parts_of
from longspan.config.written import written
from longspan.cost import Cost
from longspan.data.bases import bases_as_proteins
from longspan.report.numbers import plain_number, prefixed
from longspan.training.step_size import StepSize
from longspan_kernels.block_sparse import full_pairs

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
MOST_CLASSES = 8
WIDEST = 120
PRECISIONS = {
    "32-true": "float32",
    "16-mixed": "float16 with float32 weights",
    "bf16-mixed": "bfloat16 with float32 weights",
    "16-true": "float16",
    "bf16-true": "bfloat16",
}


@dataclass(frozen=True)
class AttentionCost:
    """Counted, of one sequence of `length` tokens, forward, beside full attention in the same model.

    Attributes:
        density, full_density: live pairs over T * T, a head and layer; causal full attention keeps about half. None where
            tokens mix through a state and not in pairs.
        flops, full_flops: of the whole model.
        changes: the attention learns its pattern; what is counted is its start.
    """

    length: int
    density: float | None
    full_density: float
    flops: int
    full_flops: int
    changes: bool

    @property
    def keeps_all(self) -> bool:
        """Whether at this length the pattern is full attention under another name."""
        return not self.changes and self.density is not None and self.density >= self.full_density


def attention_cost(task: pl.LightningModule, length: int) -> AttentionCost | None:
    """None for a model that states no cost, or not how many heads and layers it has."""
    model: Any = getattr(task, "model", None)
    backbone: Any = getattr(model, "backbone", model)
    settings, causal = getattr(backbone, "settings", None), getattr(backbone, "causal", None)
    cost = task.cost(length) if hasattr(task, "cost") else None  # type: ignore[operator]
    if settings is None or causal is None or not isinstance(cost, Cost):
        return None
    per_head = length * (length + 1) // 2 if causal else length * length
    full_layer = 4 * settings.head_width * full_pairs(length, settings.heads, causal)
    layers = getattr(backbone, "full_layers", settings.layers)
    changes = any(getattr(module, "cost_changes", False) for module in task.modules())
    return AttentionCost(
        length=length,
        density=cost.density(length, settings.heads, layers),
        full_density=per_head / length**2,
        flops=cost.total_flops,
        full_flops=layers * full_layer + cost.other_flops,
        changes=changes,
    )


def overview(
    config: Mapping[str, Any],
    size: StepSize,
    datamodule: Any,
    task: pl.LightningModule,
    trainer: pl.Trainer,
    resume: str | None = None,
) -> Table:
    """The rows of the screen: what, and what about it."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, lines in (
        ("data", _data(config, datamodule)),
        ("model", _model(config, task)),
        ("attention", _attention(config, task)),
        ("training", _training(config, size, trainer, resume)),
        ("device", _device(trainer)),
        ("files", _files(config)),
    ):
        for number, line in enumerate(lines):
            table.add_row("" if number else heading, line)
    return table


@rank_zero_only
def show_overview(table: Table, name: str, console: Console | None = None) -> None:
    """Prints the screen, and leaves it in the run's log file."""
    console = console or Console()
    panel = Panel(table, title=f"[bold]{name}[/bold]", title_align="left", expand=False, padding=(0, 1))
    console.print(panel, width=min(console.width, WIDEST))
    plain = io.StringIO()
    Console(file=plain, width=WIDEST, color_system=None, legacy_windows=False).print(table)
    text = "\n".join(line.rstrip() for line in plain.getvalue().splitlines())
    entry = log.makeRecord(log.name, logging.INFO, __file__, 0, "what this run is about to do:\n%s", (text,), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # the screen has it already
            handler.handle(entry)


def _data(config: Mapping[str, Any], datamodule: Any) -> Iterator[Text]:
    record: Mapping[str, Any] = datamodule.describe() if hasattr(datamodule, "describe") else {}
    source = record.get("source") or config["task_name"]
    longest = record.get("max_length", config["data"]["max_length"])  # images say how many tokens they are
    tokens_are = record.get("vocabulary", record.get("input", "symbols"))
    yield Text(f"{source}, {tokens_are}, sequences of up to {longest:,} tokens")
    for split in SPLITS:
        part = record.get(split)
        if not isinstance(part, Mapping):
            continue
        kind = next((kind for kind in ("windows", "sequences", "pairs") if kind in part), None)
        count = None if kind is None else part[kind]
        unit = "pairs" if kind == "pairs" else "sequences"
        said = [f"{count:,} {unit}" if isinstance(count, int) else str(count)]  # or in words: endless, each seen once
        if kind == "pairs" and part.get("rows", count) != count:
            said = [f"{count:,} pairs in {part['rows']:,} rows"]
        if part.get("streamed"):
            said = [f"streamed, {count:,} sequences an epoch"]
        elif (tokens := _tokens(datamodule, split)) is not None:
            said.append(f"{prefixed(tokens).strip()} tokens")
        if isinstance(part.get("cut"), int):
            said.append(f"{part['cut']:,} cut at {longest:,}" if part["cut"] else "none cut")
        if part.get("in_training"):
            said.append(f"{part['in_training']:,} of them in training too")
        if part.get("not_scored"):
            said.append(f"{part['not_scored']:,} of them with several labels, not scored")
        line = Text(f"{split:<11}", style="dim")
        line.append(", ".join(said), style="not dim")
        yield line
        classes = part.get("classes")
        if split == "train" and isinstance(classes, Mapping) and classes:
            shown = [f"{name} {plain_number(number)}" for name, number in list(classes.items())[:MOST_CLASSES]]
            more = f", and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
            yield Text(f"{'':<11}{len(classes)} classes: {', '.join(shown)}{more}")
            if missing := [str(name) for name, number in classes.items() if not number]:
                yield Text(f"{'':<11}no training example of {', '.join(missing)}: it cannot be learned", style="yellow")
    for key in bases_as_proteins(datamodule):
        yield Text(
            f"data.{key}=proteins, but the sequences looked at hold only A, C, G, T, U and N, which are bases. "
            f"For DNA or RNA give data.{key}=nucleotides.",
            style="yellow",
        )
    if (seen := _longest_sequence(datamodule)) and 2 * seen <= longest:
        shorter = max(16, 1 << (seen - 1).bit_length())
        yield Text(
            f"The longest sequence has {seen:,} tokens and all are padded to {longest:,}. "
            f"data.max_length={shorter} cuts none and costs less.",
            style="yellow",
        )


def _longest_sequence(datamodule: Any) -> int | None:
    """Tokens of the longest sequence, where each is read whole and padded to `max_length`; None for other data."""
    if getattr(datamodule, "pad_to_multiple", None) is not None:
        return None
    longest = 0
    for split in SPLITS:
        try:
            data = datamodule.split(split)
        except Exception:  # a data module of the user's own need not have splits by name
            return None
        if not hasattr(data, "cut_count") or not hasattr(data, "documents"):
            return None
        longest = max([longest, *(len(document.tokens) for document in data.documents)])
    return longest or None


def _tokens(datamodule: Any, split: str) -> int | None:
    try:
        data = datamodule.split(split)
    except Exception:  # a data module of the user's own need not have splits by name
        return None
    if hasattr(data, "token_count"):
        return int(data.token_count)
    documents = getattr(data, "documents", None)
    if documents is None:
        return None
    return sum(min(len(document.tokens), datamodule.max_length) for document in documents)


def _model(config: Mapping[str, Any], task: pl.LightningModule) -> Iterator[Text]:
    model: Any = getattr(task, "model", None)
    backbone: Any = getattr(model, "backbone", model)
    settings, causal = getattr(backbone, "settings", None), getattr(backbone, "causal", None)
    parameters = sum(parameter.numel() for parameter in task.parameters())
    said = [f"{prefixed(parameters).strip()} parameters"]
    if settings is not None:
        grouped = f" ({settings.key_value_heads} of keys)" if settings.key_value_heads != settings.heads else ""
        layers = "1 layer" if settings.layers == 1 else f"{settings.layers} layers"
        said.append(f"{layers} of width {settings.width}, {settings.heads} heads{grouped}")
    if causal is not None:
        said.append("a decoder: looks back only" if causal else "an encoder: looks both ways")
    yield Text("; ".join(said))
    yield Text(f"task: {type(task).__name__}")


def _attention(config: Mapping[str, Any], task: pl.LightningModule) -> Iterator[Text]:
    node = config["attention"]
    hidden = {"_target_", "_partial_", "backend"} | ({"dropout"} if node.get("dropout") == 0 else set())
    shown = {key: value for key, value in node.items() if key not in hidden and value is not None}
    own = {key: value for key, value in shown.items() if not isinstance(value, Mapping)}
    line = Text(str(config["attention_name"]), style="bold")
    line.append("".join(f"  {key}={written(value)}" for key, value in own.items()), style="not bold")
    yield line
    backbone = getattr(getattr(task, "model", None), "backbone", None)
    # images say themselves how many tokens they are
    cost = attention_cost(task, int(getattr(backbone, "max_length", config["data"]["max_length"])))
    if cost is None:
        return
    start = "at the start keeps" if cost.changes else "keeps"
    if cost.density is None:
        yield Text("density none: tokens mix through a state, not in pairs")
    else:
        kept, all_kept = 100 * cost.density, 100 * cost.full_density
        yield Text(f"{start} {kept:.3g} % of all pairs at {cost.length:,} tokens; full attention {all_kept:.3g} %")
    share = cost.flops / cost.full_flops if cost.full_flops else 1.0
    yield Text(
        f"{prefixed(cost.flops)}FLOP a sequence forward, counted; with full attention {prefixed(cost.full_flops)}FLOP "
        f"({share:.2f} of it)"
    )
    missing, listed = variants_without_a_layer(config)
    if missing:
        layers = config["model"]["layers"]
        yield Text(
            f"No layer has {', '.join(missing)}: {listed} layers are listed and the model has {layers}. "
            f"Give a shorter list, or model.layers={listed}.",
            style="yellow",
        )
    if cost.keeps_all and config["attention_name"] != "full":
        yield Text(
            "This pattern keeps every pair at this length, as attention=full does: the two are the same model. "
            "Give longer sequences (data.max_length) or a pattern that keeps less.",
            style="yellow",
        )


def variants_without_a_layer(config: Mapping[str, Any]) -> tuple[list[str], int]:
    """Names of attentions, listed layer by layer, that no layer has, as the list is longer than the model; and its length."""
    node, model = config["attention"], config["model"]
    layers = model.get("layers")
    if node.get("_target_") == "longspan.attention.hybrid":
        cycle = [(part.name, dict(part.settings)) for part in parts_of("layers", node["layers"])]
    elif "_target_" in node:
        return [], 1
    else:
        names = model.get("attention_layers") or [name for name, value in node.items() if isinstance(value, Mapping)]
        cycle = [(name, {}) for name in names]
    if not isinstance(layers, int):
        return [], len(cycle)
    used = cycle[:layers]
    return list(dict.fromkeys(name for name, settings in cycle[layers:] if (name, settings) not in used)), len(cycle)


def _training(config: Mapping[str, Any], size: StepSize, trainer: pl.Trainer, resume: str | None) -> Iterator[Text]:
    steps = f"{trainer.max_steps:,} steps" if trainer.max_steps > 0 else f"{trainer.max_epochs} epochs"
    accumulated = f", {size.accumulated_batches} batches accumulated" if size.accumulated_batches > 1 else ""
    yield Text(f"{steps} of {size.sequences_per_step:,} sequences, {size.tokens_per_step:,} tokens{accumulated}")
    rate = config["optimizer"].get("lr")
    yield Text(f"{str(config['optimizer'].get('_target_')).rpartition('.')[2]}, lr {rate}, seed {config['seed']}")
    if resume:
        yield Text(f"goes on from {resume}", style="yellow")
    elif config.get("init_from"):
        yield Text(f"starts from the weights of {config['init_from']}")


def _device(trainer: pl.Trainer) -> Iterator[Text]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU" if device.type == "cpu" else str(device)
    number = torch.get_num_threads()
    threads = f", {number} thread{'' if number == 1 else 's'}" if device.type == "cpu" else ""
    precision = PRECISIONS.get(str(trainer.precision), trainer.precision)
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    yield Text(f"{count}{name}{threads}, {precision}")


def _files(config: Mapping[str, Any]) -> Iterator[Text]:
    folder = Path(config["output_dir"])
    here = Path.cwd()
    shown = folder.relative_to(here) if folder.is_absolute() and folder.is_relative_to(here) else folder
    yield Text(f"{shown}/: checkpoints/, record.json, train.log")
