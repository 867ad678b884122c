"""Patterns as values: equal, hashable, copied, pickled, registered; and what wrong settings raise."""

import copy
import functools
import pickle
import subprocess
import sys

import pytest
import torch

from longspan.patterns import (
    BigBird,
    BlockTable,
    Fixed,
    Full,
    Global,
    Intersection,
    Local,
    Local2D,
    Longformer,
    Pattern,
    PatternError,
    PerHead,
    Predicate,
    Random,
    Strided,
    Union,
)
from longspan_kernels.block_sparse.cache import lookup, register
from longspan_kernels.errors import KernelError

torch.set_num_threads(1)
EYE = torch.eye(4, dtype=torch.bool)


def even(b, h, q_idx, kv_idx):
    return (q_idx + kv_idx) % 2 == 0


# Each entry makes the same value twice, and no two entries are equal.
MAKERS = {
    "full": Full,
    "local": lambda: Local(8),
    "dilated": lambda: Local(8, 2),
    "local2d": lambda: Local2D(4, 6, 3),
    "local2d turned": lambda: Local2D(6, 4, 3),
    "local2d dilated": lambda: Local2D(4, 6, 3, 2),
    "local2d shifted": lambda: Local2D(4, 6, 3, edges="shift"),
    "strided": lambda: Strided(8),
    "fixed": lambda: Fixed(8, 2),
    "global first": lambda: Global(first=2),
    "global positions": lambda: Global(positions=[5, 1, 1, 2]),
    "random": lambda: Random(2, 8),
    "random seed": lambda: Random(2, 8, seed=1),
    "table": lambda: BlockTable(EYE.clone(), 8),
    "table other": lambda: BlockTable(EYE.flip(0), 8),
    "table other size": lambda: BlockTable(EYE, 4),
    "table shape": lambda: BlockTable(EYE.view(1, 4, 4), 8),
    "predicate": lambda: Predicate(even),
    "predicate shared": lambda: Predicate(even, per_head=False),
    "per head": lambda: PerHead([Local(8), Full()]),
    "per head swapped": lambda: PerHead([Full(), Local(8)]),
    "bigbird": lambda: BigBird(8),
    "bigbird seed": lambda: BigBird(8, seed=3),
    "longformer": lambda: Longformer(8, (0, 9)),
    "longformer none": lambda: Longformer(8, ()),
    "union": lambda: Local(8) | Strided(8),
    "intersection": lambda: Local(8) & Strided(8),
    "nested": lambda: (Local(8) | Strided(8)) & Fixed(8, 2),
    "nested otherwise": lambda: Local(8) | (Strided(8) & Fixed(8, 2)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_equal_settings_make_equal_values(name):
    one, two = MAKERS[name](), MAKERS[name]()
    assert one == two and hash(one) == hash(two) and one.key == two.key
    others = [make() for other, make in MAKERS.items() if other != name]
    assert one not in others and one.key not in {other.key for other in others}
    assert one != "anything" and repr(one) == one.key


@pytest.mark.parametrize("name", MAKERS)
def test_registered_copied_and_pickled(name):
    pattern = MAKERS[name]()
    assert lookup(pattern.key) == pattern
    for twin in (copy.copy(pattern), copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern))):
        assert twin == pattern
        assert twin.mask(15, heads=2).equal(pattern.mask(15, heads=2))


def test_immutable():
    pattern = Local(8)
    with pytest.raises(AttributeError):
        pattern.window = 9
    rows = EYE.clone()
    table = BlockTable(rows, 8)
    rows.fill_(True)
    assert table.mask(32).sum() == 4 * 64


def test_composition_joins_and_drops_repeats():
    a, b, c = Local(8), Strided(8), Full()
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert (a | b | a).key == (a | b).key
    assert a | b != a & b
    assert a | a == a == a & a
    assert Union((a,)) == Union((a, a)) != Intersection((a,)) != a
    for wrong in (3, None, "full"):
        with pytest.raises(TypeError):
            a | wrong


def test_keys_are_the_same_in_every_process():
    """A key is used to find a pattern in other ranks and runs: it may not hold addresses or salted hashes."""
    code = (
        "import torch; from longspan.patterns import *;"
        "print(BigBird(8), BlockTable(torch.eye(4).bool(), 8), Longformer(8, {9, 0}) & Fixed(8, 2), sep='\\n')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    here = [BigBird(8), BlockTable(EYE, 8), Longformer(8, (0, 9)) & Fixed(8, 2)]
    assert out.stdout.split("\n")[:3] == [pattern.key for pattern in here]


def _environment():
    import os

    return os.environ | {"PYTHONPATH": ":".join(p for p in sys.path if p), "PYTHONHASHSEED": "77"}


def test_registry_refuses_a_key_of_another_type():
    with pytest.raises(ValueError, match="belongs to a"):
        register(Full().key, Local(8))
    with pytest.raises(KernelError, match="construct"):
        lookup("Nothing()")


def test_a_predicate_says_which_arguments_it_takes():
    with pytest.raises(PatternError, match=r"does not take four arguments; write mask_mod\(b, h, q_idx, kv_idx\)"):
        Predicate(lambda q_idx, kv_idx: q_idx >= kv_idx)
    assert Predicate(functools.partial(lambda period, b, h, q, k: (q - k) % period == 0, 3)).live_pairs(6) == 12
    assert Predicate(lambda *indices: indices[2] >= indices[3]).live_pairs(4) == 10


def test_predicates_are_equal_by_function():
    assert Predicate(even) == Predicate(even)
    assert Predicate(lambda b, h, q, k: q == k) != Predicate(lambda b, h, q, k: q == k)


def test_a_family_of_the_users_own():
    from dataclasses import dataclass

    from longspan_kernels.block_sparse.block_rules import BlockBand
    from longspan_kernels.block_sparse.rules import Band

    @dataclass(frozen=True, eq=False, repr=False)
    class Lower(Pattern):
        size: int

        def rule(self, q_len, k_len, heads, causal, device):
            return BlockBand(self.size) & Band(0, None)

    pattern = Lower(4) | Global(first=1)
    assert pattern.live_pairs(9) == int(pattern.mask(9).sum()) > 9
    assert Lower(4) != Lower(5) and "Lower(size=4)" in Lower(4).key


WRONG = [
    (lambda: Local(0), "Local: window = 0"),
    (lambda: Local(2.5), "Local: window = 2.5 is not a whole number"),
    (lambda: Local(True), "Local: window = True"),
    (lambda: Global(list(range(1000))), r"Global: first = \[0, 1, .{,40}\.\.\.\] is not a whole number"),  # not all of them
    (lambda: Local(4, 0), "Local: dilation = 0"),
    (lambda: Local2D(0, 4, 3), "Local2D: height = 0"),
    (lambda: Local2D(4, 4, 3, 0), "Local2D: dilation = 0"),
    (lambda: Local2D(4, 4, 3, edges="wrap"), "Local2D: edges = 'wrap'; give one of cut, shift"),
    (lambda: Local2D(4, 9, 5, edges="shift"), "Local2D: window = 5 with dilation 1 spans 5 tokens, .* 4 x 9 has"),
    (lambda: Local2D(4, 4, 3).mask(17), "Local2D: height, width = 4, 4 have 16 places for 17 tokens"),
    (lambda: Strided(-1), "Strided: stride = -1"),
    (lambda: Fixed(0, 1), "Fixed: stride = 0"),
    (lambda: Fixed(4, 5), "Fixed: summary = 5 is more than stride = 4"),
    (lambda: Fixed(4, 0), "Fixed: summary = 0"),
    (lambda: Global(), "Global: first, positions : neither"),
    (lambda: Global(1, (2,)), "Global: first, positions : both"),
    (lambda: Global(positions=(1, -2)), "Global: positions = -2"),
    (lambda: Global(positions=3), "Global: positions = 3 is not a sequence"),
    (lambda: Longformer(4, 2), "Longformer: global_positions = 2"),
    (lambda: Longformer(0, ()), "Longformer: window = 0"),
    (lambda: Random(0, 4), "Random: blocks = 0"),
    (lambda: Random(1, 0), "Random: block_size = 0"),
    (lambda: Random(1, 4, -1), "Random: seed = -1"),
    (lambda: BigBird(window_blocks=2), "BigBird: window_blocks = 2 is even; give an odd number, 1 or 3"),
    (lambda: BigBird(block_size="64"), "BigBird: block_size = '64'"),
    (lambda: BigBird(random_blocks=-1), "BigBird: random_blocks = -1"),
    (lambda: BlockTable([1, 0], 4), r"BlockTable: table has shape \(2,\)"),
    (lambda: BlockTable([[0, 2]], 4), "BlockTable: table of torch.int64 holds values other"),
    (lambda: BlockTable([[0], [1, 2]], 4), "BlockTable: table cannot be made a tensor"),
    (lambda: BlockTable(EYE, 4).mask(17), r"BlockTable: table of shape \(4, 4\) is too small for 17 tokens.* 5 blocks of 4"),
    (lambda: BlockTable(EYE.expand(2, 4, 4), 4).mask(9, heads=3), "BlockTable: table .* 2 heads, not 3"),
    (lambda: Predicate(3), "Predicate: mask_mod = 3 is not callable"),
    (lambda: Predicate(lambda b, h, q, k: q + k).mask(4), "Predicate: mask_mod returned torch.int64"),
    (lambda: Predicate(even).live_pairs(1 << 16), "Predicate: mask_mod would be evaluated at 65536 x 65536 pairs"),
    (lambda: Predicate(even).live_pairs(1 << 15, heads=4), "per_head=False"),
    (lambda: PerHead([]), "PerHead: patterns is empty"),
    (lambda: PerHead(Full()), "PerHead: patterns = Full"),
    (lambda: PerHead([Full(), 3]), r"PerHead: patterns\[1\] = 3 is not a pattern"),
    (lambda: PerHead([Full(), Full()]).mask(4, heads=3), "PerHead: patterns holds 2 patterns for 3 heads"),
    (lambda: PerHead([Full()] * 2) | PerHead([Full()] * 3), r"Union: parts are made for \[2, 3\] heads"),
    (lambda: Full().mask(-1), "Full: q_len = -1"),
    (lambda: Full().live_pairs(4, heads=0), "Full: heads = 0"),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_argument_value_and_fix(build, message):
    with pytest.raises(PatternError, match=message):
        build()


def test_errors_survive_pickling():
    with pytest.raises(PatternError) as caught:
        Local(0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
