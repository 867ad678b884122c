"""`attention=bigbird`: whole blocks of a window, at random and global."""

from __future__ import annotations

from longspan.attention.variant import Place, variant
from longspan.patterns import BigBird, Pattern


@variant("bigbird")
def bigbird(
    place: Place,
    *,
    block_size: int = 64,
    window_blocks: int = 3,
    random_blocks: int = 3,
    global_blocks: int = 2,
    seed: int = 0,
) -> Pattern:
    """BigBird's block attention (arXiv:2007.14062); randoms are drawn for each head, row and layer.

    Args:
        block_size: tokens a block.
        window_blocks: blocks of the window, odd, centred on the query's own.
        random_blocks: random key blocks for each query block.
        global_blocks: blocks that see and are seen by all.
        seed: layer l draws by seed + l.
    """
    return BigBird(block_size, window_blocks, random_blocks, global_blocks, seed + place.layer)
