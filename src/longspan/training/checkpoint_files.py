"""Checkpoint files that are whole or not there: what a kill, a crash or a full disk may do to the one being written."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from longspan.config.errors import CheckpointWriteError
from longspan.records.atomic import sync_folder

# a file that is overwritten (last.ckpt) leaves its predecessor beside it, for the case that the disk spoils the new one
PREVIOUS = ".previous.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the old file, flushes to the disk, then renames over it; keeps one predecessor.

    Lightning's own writer goes through the system's temporary folder, so that a kill while it copies from there leaves
    half a file in the place of the good one; and it holds the file in memory a second time.

    Raises (in `save_checkpoint`):
        CheckpointWriteError: the disk refused, as a full one does; the file that was there before is untouched.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)  # remote storage has no renaming
            return
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _keep_previous(path)
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            refused = _refusal(error)
            if refused is None:
                raise
            others = any(other != path for other in path.parent.glob("*.ckpt"))
            kept = "the others of its folder stand" if others else "there is no other in its folder"
            kept = f"{path} is still the one written before" if path.exists() else kept
            raise CheckpointWriteError(
                f"{path} could not be written: {refused.strerror or refused}; {kept}. Make room, then go on with "
                f"hydra.run.dir={path.parent.parent} ckpt_path=auto"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: Any = None) -> Any:
        """With ``weights_only`` whatever is asked for: a checkpoint is data and must not be able to run code."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def damage(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, None for a whole one.

    torch.load accepts a file whose bytes have changed; its checksums show it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.save never compresses: one that is would be a small file that fills the memory
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                return "its parts are compressed, as torch never writes them"
            spoiled = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return None if spoiled is None else f"the checksum of {spoiled} does not agree with its content"


def _keep_previous(path: Path) -> None:
    if not path.exists():
        return
    previous = path.with_name(path.name.removesuffix(".ckpt") + PREVIOUS)
    linked = path.with_name(f".{previous.name}.partial")
    with contextlib.suppress(FileNotFoundError):
        linked.unlink()
    try:
        os.link(path, linked)  # so that `path` is there at every moment
    except OSError:  # a file system without links
        os.replace(path, previous)
    else:
        os.replace(linked, previous)


def _refusal(error: BaseException) -> OSError | None:
    """The disk's refusal, also where torch's writer has wrapped it in an error of its own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            return link
        link = link.__cause__ or link.__context__
    return None
