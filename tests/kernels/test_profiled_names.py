"""The names by which a profile knows Longspan's kernels."""

import ast
from pathlib import Path

import longspan_kernels
from longspan_kernels.launch.launcher import KERNELS

FILES = sorted(Path(longspan_kernels.__file__).parent.glob("*/triton/*.py"))


def launched(tree):
    """Functions under triton.jit that no other function under it calls: kernels, not parts of one."""
    jitted = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(each) for each in node.decorator_list)
    ]
    called = {
        call.func.id
        for node in jitted
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    return {node.name for node in jitted}, called


def test_every_kernel_is_known():
    found = [launched(ast.parse(path.read_text())) for path in FILES]
    jitted, called = (set().union(*sets) for sets in zip(*found, strict=True))
    assert len(jitted - called) > 40
    assert jitted - called == set(KERNELS)
    assert len(KERNELS) == len(set(KERNELS))
