"""Launches past Triton's Python hand its launcher in C what Triton would, and give way to hooks and to what is not known."""

import pytest
import torch

pytest.importorskip("triton")

from triton import knobs
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import driver

from longspan_kernels.launch import direct
from longspan_kernels.launch.direct import direct_launch

GRID = (7, 1, 1)


class _OnDevice(torch.Tensor):
    is_cuda = True


class _Driver:
    def get_current_device(self):
        return 1

    def get_current_stream(self, device):
        return 1000 + device


class _Compiled:
    """A kernel as Triton loads it, with Triton's own launcher over a list instead of the function in C."""

    function, packed_metadata = 77, (4, 1, 0)

    def __init__(self, **changes):
        self.launched, self.hooked = [], []
        self.run = CudaLauncher.__new__(CudaLauncher)
        sizes = {"global_scratch_size": 0, "global_scratch_align": 1, "profile_scratch_size": 0, "profile_scratch_align": 1}
        forms = {"arg_annotations": ["of", "arguments"], "kernel_signature": b"types", "gsan_enabled": False, "num_ctas": 1}
        flags = {"launch_cooperative_grid": False, "launch_pdl": False}
        for name, value in (sizes | forms | flags | changes).items():
            setattr(self.run, name, value)
        self.run.launch = lambda *given: self.launched.append(given)

    def __getitem__(self, grid):
        def through_triton(*args):
            self.hooked.append((grid, args))
            self.run(*grid, 5, self.function, self.packed_metadata, None, None, None, *args)

        return through_triton


@pytest.fixture(autouse=True)
def _driver(monkeypatch):
    monkeypatch.setattr(driver, "_active", _Driver())


def flat(given):
    """What a launcher in C was given; a kernel's arguments come one by one in Triton 3.6, as one tuple after that."""
    return (*given[:-1], *given[-1]) if isinstance(given[-1], tuple) else given


def test_the_launcher_is_given_what_triton_gives_it():
    compiled, tail = _Compiled(), [3, 0.5, (1, 2), 7]
    x, absent, host = torch.zeros(4).as_subclass(_OnDevice), None, torch.zeros(2)
    run = direct_launch(compiled, GRID, (x, absent, host), tail)
    assert run is not None and not compiled.launched
    compiled.run(*GRID, 1001, compiled.function, compiled.packed_metadata, None, None, None, x, absent, host, *tail)
    other = torch.ones(4).as_subclass(_OnDevice)
    run(other, absent, host)
    triton, ours = map(flat, compiled.launched)
    assert len(triton) == len(ours) and ours[3] == 1001
    place = next(n for n, value in enumerate(triton) if value is x)
    assert ours[place] == other.data_ptr()  # and the driver is not asked
    assert all(a is b or a == b for n, (a, b) in enumerate(zip(triton, ours, strict=True)) if n != place)
    assert ours[place + 2] is host  # Triton refuses it


def test_hooks_that_are_set_later_are_called(monkeypatch):
    compiled = _Compiled()
    run = direct_launch(compiled, GRID, (), [3])
    run()
    assert not compiled.hooked
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        hook.add(print)
        run()
        hook.remove(print)
        run()
    assert compiled.hooked == [(GRID, (3,))] * 2
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", print)  # as a function alone
    run()
    assert len(compiled.hooked) == 3
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", None)
    run()
    assert len(compiled.hooked) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"global_scratch_size": 8},
        {"profile_scratch_size": 8},
        {"launch_cooperative_grid": True},
        {"gsan_enabled": True},
        {"launch": None},
        {"__class__": type("OtherLauncher", (CudaLauncher,), {})},
    ],
)
def test_what_is_not_known_goes_through_triton(changes):
    compiled = _Compiled()
    for name, value in changes.items():
        setattr(compiled.run, name, value)
    if changes == {"launch": None}:
        del compiled.run.launch
    assert direct_launch(compiled, GRID, (), [3]) is None


def test_other_versions_and_other_forms_go_through_triton(monkeypatch):
    import triton

    compiled = _Compiled()
    monkeypatch.setattr(CudaLauncher, "__call__", lambda self, *given: self.launch(*given[:-1], "more"))
    assert direct_launch(compiled, GRID, (), [3]) is None
    monkeypatch.undo()
    monkeypatch.setattr(driver, "_active", _Driver())
    assert direct_launch(compiled, GRID, (), [3]) is not None
    monkeypatch.setattr(triton, "__version__", "4.0.0")
    assert direct_launch(compiled, GRID, (), [3]) is None
    assert all(triton.__version__ != known for known in direct.KNOWN)
