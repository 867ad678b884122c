"""Scripts in processes of their own, forked from a server that has the libraries loaded: a new interpreter needs ten seconds.

`run` and `Script` stand for `subprocess.run` and `subprocess.Popen`, with what is printed kept in files. What is read when
Python starts, or when a library is loaded, is as it was for the server: a test of that starts an interpreter of its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Not wandb: it makes folders when it is loaded, which the first script to end would take away from the others.
PRELOADED = ("longspan.training.run", "longspan.config.compose", "longspan.data", "longspan.inference", "longspan.report.build")

_running: set[Any] = set()


def start(job: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """A `multiprocessing.Process` that runs `job`, a function of an importable module; killed at the end if it still runs."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(PRELOADED))  # heard once, by the first process
    process = server.Process(target=_as_by_itself, args=(job, *arguments), kwargs=settings)
    process.start()
    _running.add(process)
    return process


@atexit.register
def _kill_what_runs() -> None:
    for process in _running:
        if process.is_alive():
            process.kill()


class Script:
    """A Python script in a process of its own: the part of `subprocess.Popen` that tests need.

    Args:
        script: its path.
        words: its command line.
        cwd: its working directory.
        env: all of its environment; by default that of this process.
        merged: one stream for both outputs, as `stderr=subprocess.STDOUT` gives.
    """

    def __init__(
        self,
        script: Path | str,
        *words: Any,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        merged: bool = False,
    ) -> None:
        self.args = [str(script), *map(str, words)]
        self._folder = tempfile.TemporaryDirectory(prefix="script-")
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stdout" if merged else "stderr")]
        for file in self._files:
            file.touch()
        environ = dict(os.environ if env is None else env)
        self._process = start(_run_script, self.args, str(cwd or Path.cwd()), environ, [str(file) for file in self._files])
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As `subprocess` counts: minus the signal that killed it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.args, timeout, *(file.read_bytes() for file in self._files))
        return self.returncode

    def printed(self) -> str:
        """What it has written to standard output by now."""
        return self._files[0].read_text()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Standard output and standard error, when it has ended."""
        self.wait(timeout)
        output, errors = (file.read_text() for file in self._files)
        return output, "" if self._files[0] == self._files[1] else errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(script: Path | str, *words: Any, timeout: float = 300, check: bool = False, **settings: Any) -> Any:
    """`subprocess.CompletedProcess` of a script, its outputs as text."""
    process = Script(script, *words, **settings)
    output, errors = process.communicate(timeout)
    done = subprocess.CompletedProcess(process.args, process.wait(), output, errors)
    if check:
        done.check_returncode()
    return done


def _as_by_itself(job: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # the server's way of starting processes is not handed on
    job(*arguments, **settings)


def _run_script(argv: list[str], cwd: str, environ: dict[str, str], outputs: list[str]) -> None:
    """Does in this process what `python argv...` does in a new one."""
    for number, path in enumerate(outputs, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    _read_rank()
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).resolve().parent))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit:
        raise
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def _read_rank() -> None:
    """Lightning reads a process's rank when it is loaded, which was in the server."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0
