"""Checks what a config points to: files that are read, folders that are written, devices; before any work starts."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from longspan.config.checks import check_processes
from longspan.config.errors import CheckpointError, ConfigError, wrong_value
from longspan.config.written import shown
from longspan.data.files import list_files
from longspan.data.settings import bundled
from longspan.data.vocabularies import check_name

GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, of Windows
SEVERAL_FORMATS = (
    "longspan.data.TextDataModule",
    "longspan.data.SequenceClassificationDataModule",
    "longspan.data.SequenceRegressionDataModule",
    "longspan.data.PairedDataModule",
    "longspan.data.LargeTextDataModule",
    "longspan.data.StreamedTextDataModule",
    "longspan.data.StreamedClassificationDataModule",
)
# keys of data nodes that name files, and whether `data.format` says what is in them
FILES = {
    "path": True,
    "validation_path": True,
    "test_path": True,
    "target_path": False,
    "validation_target_path": False,
    "test_target_path": False,
    "labels_path": False,
    "genes_path": False,
    "test_genes_path": False,
}


def check_reachable(config: Mapping[str, Any], *, devices: bool = True) -> None:
    """Raises an error that names the key, for a resolved config of train.py; looks at this machine's devices where asked to."""
    check_folder("hydra.run.dir", config["output_dir"])
    for path in (
        ("trainer", "default_root_dir"),
        ("callbacks", "checkpoint", "dirpath"),
        ("logger", "csv", "save_dir"),
        ("logger", "wandb", "save_dir"),
    ):
        folder = _at(config, path)
        if isinstance(folder, str) and not folder.startswith(str(config["output_dir"])):
            check_folder(".".join(path), folder)
    for key in ("ckpt_path", "init_from"):
        if config.get(key) and not (key == "ckpt_path" and config[key] == "auto"):
            check_checkpoint(key, config[key])
    check_data_files(config["data"])
    table = _at(config, ("attention", "table"))
    if isinstance(table, str) and not Path(table).expanduser().is_file():
        raise ConfigError(f"attention.table={shown(table)}: no such file; give the path of a .npy, .pt or .csv file, or null")
    check_model_folder(config["model"])
    if devices:
        check_devices(config["trainer"])


def check_model_folder(model: Mapping[str, Any]) -> None:
    """Raises ConfigError where `model.path` is a path without a model of transformers. NAME and OWNER/NAME are the Hub's."""
    path = model.get("path")
    if not isinstance(path, str):
        return
    folder = Path(path).expanduser()
    of_the_hub = not folder.is_absolute() and not path.startswith(".") and path.count("/") < 2
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={shown(path)} has no config.json; give a folder that save_pretrained wrote")
    if not folder.is_dir() and not of_the_hub:
        raise ConfigError(
            f"model.path={shown(path)}: no such folder; give one that save_pretrained wrote, or a name on the Hub"
        )


def check_folder(key: str, folder: str | Path, given: str | Path | None = None) -> None:
    """Raises ConfigError where a folder is not there and cannot be made, or cannot be written to.

    Args:
        given: what the key has, where that is a file in the folder.
    """
    value = shown(str(given or folder))
    path = Path(folder).expanduser().absolute()
    there = path
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            what = "is a file" if there == path else f"cannot be made, as {there} is a file"
            raise ConfigError(f"{key}={value} {what}; give a folder to write to")
        with tempfile.TemporaryDirectory(dir=there, prefix=".longspan-"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{key}={value} cannot be written to ({reason}); give another folder") from None


def check_untrained(folder: str | Path, key: str) -> None:
    """Raises ConfigError where an earlier run left checkpoints in the folder: a new run there would write over them.

    Args:
        key: the config key that gives the folder.
    """
    there = list(Path(folder).expanduser().glob("checkpoints/*.ckpt"))
    if there:
        last = max(there, key=lambda file: file.stat().st_mtime_ns)
        raise ConfigError(
            f"{key}: {folder} holds the checkpoints of an earlier run, and a new run would write over them. "
            f"Give another folder with {key}=, or go on with that run: ckpt_path=auto and the same other keys, or "
            f"ckpt_path={last}. ckpt_path=null starts anew in this folder"
        )


def check_output(key: str, file: str | Path) -> None:
    """Raises ConfigError where a file cannot be written."""
    path = Path(file).expanduser()
    if path.is_dir():
        raise ConfigError(f"{key}={shown(str(file))} is a folder; give the name of a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{key}={shown(str(file))} cannot be written to; give another file")
    check_folder(key, path.parent, file)


def check_checkpoint(key: str, path: str | Path) -> None:
    """Raises CheckpointError where there is no such file."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise CheckpointError(f"{key}={shown(str(path))} is a folder{newest_inside(file)}. Give the .ckpt file.")
    if not file.is_file():
        raise CheckpointError(
            f"{key}={shown(str(path))} does not exist. Checkpoints are in a run's folder, under checkpoints/."
        )
    if not os.access(file, os.R_OK):
        raise CheckpointError(f"{key}={shown(str(path))} cannot be read; check its permissions.")


def newest_inside(folder: Path) -> str:
    """``; it holds FILE``, the checkpoint that was written last, from which training goes on; nothing where there is none."""
    found = [(path.stat().st_mtime_ns, path) for path in folder.rglob("*.ckpt") if path.is_file()]
    return f"; it holds {max(found)[1]}" if found else ""


def checkpoint_file(key: str, path: str | Path) -> Path:
    """The `.ckpt` file that is meant: the path itself, or of a run's folder the checkpoint that the run's test used: the best,
    or the last where no best one was kept.

    Raises:
        CheckpointError: the folder holds no checkpoint. Whether a file is there is asked by `check_checkpoint`.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return folder
    found = sorted(folder.glob("checkpoints/*.ckpt")) or sorted(folder.glob("*.ckpt"))
    if not found:
        below = sorted(folder.rglob("*.ckpt"))
        hint = f"; below it is {below[0]}" if below else ""
        value = shown(str(path))
        raise CheckpointError(f"{key}={value} holds no checkpoint{hint}; give a run's folder, or a .ckpt file")
    best = [file for file in found if file.name.startswith("best")]
    last = [file for file in found if file.name == "last.ckpt"]
    return max(best or last or found, key=lambda file: file.stat().st_mtime)


def told_checkpoint(key: str, path: str | Path) -> str:
    """The file of `checkpoint_file`, which is there; of a folder it is printed.

    Raises:
        CheckpointError: as `checkpoint_file` and `check_checkpoint`.
    """
    file = checkpoint_file(key, path)
    check_checkpoint(key, file)
    if Path(path).expanduser().is_dir():
        print(f"{key}={shown(str(path))}: taking {file}", file=sys.stderr)
    return str(file)


# data modules whose `path` is a folder, or an array file, of a layout of its own
OF_FOLDERS = {
    f"longspan.data.{name}DataModule"
    for name in ("DNALongBench", "GenomicBenchmark", "ImageClassification", "ListOps", "Pathfinder", "Retrieval")
}


def check_data_files(data: Mapping[str, Any]) -> None:
    """Raises ConfigError where files of data are missing, or no data is named at all."""
    target = str(data.get("_target_"))
    if not target.startswith("longspan.data."):
        return
    if target in SEVERAL_FORMATS and not data.get("path") and not data.get("name") and not data.get("bundled"):
        if "Paired" in target and not data.get("generated"):
            raise wrong_value("data.path", None, "name your own files, or take data=dates, data=numbers or data=summaries")
        if "Large" in target:
            raise wrong_value("data.path", None, "name your own files: texts, or JSONL with data.text_column")
        if "Streamed" in target:
            raise wrong_value("data.path", None, "name your own files, or a Hugging Face data set by data.name")
        if "Paired" not in target:
            bundled(None, ("addresses", "h37rv", "msmeg") if "Text" in target else ("hiv1",))
    if target in OF_FOLDERS:
        if data.get("path") and not Path(data["path"]).expanduser().exists():
            fix = f"does not exist (looked in {Path.cwd()}); check the spelling"
            raise wrong_value("data.path", data["path"], fix)
        return
    if "path" in data and not data.get("path") and target not in SEVERAL_FORMATS and not data.get("bundled"):
        bundled(None, ("h37rv", "msmeg"), named=False)
    for key in ("vocabulary", "target_vocabulary"):
        if isinstance(data.get(key), str):
            check_name(data[key], key)
    for key, by_format in FILES.items():
        if data.get(key):
            form = data.get("format") if by_format else None
            if "target" in key or data.get(f"{key.removesuffix('path')}target_path"):
                form = "lines"
            if target not in SEVERAL_FORMATS or key.endswith("genes_path"):
                form = form or "text"  # which format it must be, its reader says; here only that something is there
            list_files(key, data[key], form)


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Raises ConfigError for devices that this machine lacks, as far as that can be seen without torch."""
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", 1)
    if accelerator in ("gpu", "cuda"):
        build = version("torch")
        if build.endswith("+cpu") or (sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES))):
            raise ConfigError(
                f"trainer.accelerator={accelerator}, but torch {build} sees no GPU here. "
                "Use trainer=default for the CPU, or install a CUDA build of torch on a machine with a GPU."
            )
    if accelerator == "mps" and sys.platform != "darwin":
        raise ConfigError("trainer.accelerator=mps is for Macs; give cpu, gpu or auto")
    if accelerator == "cpu":
        if isinstance(devices, list):
            raise ConfigError(f"trainer.devices={shown(devices)} with trainer.accelerator=cpu: give a number of processes")
        check_processes(devices, accelerator)


def _at(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
