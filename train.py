"""Trains one model on one task with the attention you name, and says what it is worth and what it cost.

python train.py attention=bigbird
python train.py --help
"""

from __future__ import annotations

from pathlib import Path

from longspan.training.train import train

CONF = Path(__file__).parent / "conf"

if __name__ == "__main__":
    train(CONF)
