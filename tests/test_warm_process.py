"""What tests use in place of a new interpreter ends, prints and stops as one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm_process import Script, run

ENDS = {
    "comes to its end": "print('done')",
    "a number": "import sys; print('done'); sys.exit(3)",
    "words": "import sys; sys.exit('it cannot')",
    "an error": "def f(): raise ValueError('wrong')\nf()",
    "Ctrl-C": "raise KeyboardInterrupt",
    "exit hooks": "import atexit; atexit.register(print, 'afterwards'); print('before')",
    "a thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "what it is given": "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['OWN'], os.getenv('HOME'), sys.path[0])",
    "its name": "import __main__; print(__name__, __main__.__file__ == __file__, __main__.__spec__)",
}


def frames(errors: str) -> list[str]:
    """The lines of a traceback that belong to the script."""
    lines = errors.splitlines()
    return [line for line in lines if "script.py" in line or not line.startswith("  ")]


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS.keys())
def test_a_script_ends_as_in_a_new_interpreter(code, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(code)
    place = {"cwd": tmp_path, "env": {"OWN": "here", "PATH": os.environ["PATH"]}}
    new = subprocess.run([sys.executable, script, "a", "b c"], capture_output=True, text=True, **place)
    warm = run(script, "a", "b c", **place)
    assert (warm.returncode, warm.stdout) == (new.returncode, new.stdout)
    assert frames(warm.stderr) == frames(new.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_it(number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time; print('up', flush=True); time.sleep(60)")
    process = Script(script, merged=True)
    while not process.printed():
        time.sleep(0.01)
    assert process.poll() is None and process.returncode is None
    process.send_signal(number)
    assert process.wait(30) == -number


def test_one_that_takes_too_long_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time; time.sleep(60)")
    process = Script(script)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process._process.join(30)
    assert process.returncode == -signal.SIGKILL


def test_the_server_has_loaded_the_libraries_and_runs_no_thread_that_a_fork_would_lose(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "print(os.getppid(), 'torch' in sys.modules, 'lightning' in sys.modules)\n"
        "import torch\n"
        "x = torch.ones(300, 300, requires_grad=True)\n"
        "(x @ x).sum().backward()\n"
        "print(float(x.grad.mean()), torch.get_num_threads())\n"
    )
    first, second = run(script, check=True).stdout.splitlines()
    server, *loaded = first.split()
    assert loaded == ["True", "True"] and second == "600.0 1"
    if Path("/proc/self/task").is_dir():
        assert len(os.listdir(f"/proc/{server}/task")) == 1
