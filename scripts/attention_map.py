"""Draws which keys a trained model's queries attend to on real input.

python train.py attention=moba attention.block_size=32 hydra.run.dir=outputs/moba
python scripts/attention_map.py checkpoint=outputs/moba output=moba.png tokens=256

It takes the first sequence of the validation data; other words override the run's config, such as data.path=mine.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.overrides import split_words
from longspan.config.reachable import check_output, told_checkpoint

CONF = Path(__file__).parents[1] / "conf"
KEYS = {
    "checkpoint": "a .ckpt file of a run, or its folder (required)",
    "output": "the picture to write, .png or .pdf (required)",
    "tokens": "how many tokens from the start (256)",
}


def main(arguments: list[str]) -> None:
    """Writes `output=`: a row a layer, a panel a head."""
    with readable_errors():
        own, words = split_words(arguments, KEYS)
        for key in ("checkpoint", "output"):
            if key not in own:
                raise ConfigError(f"{key}=... must be given: {KEYS[key].removesuffix(' (required)')}")
        if not own.get("tokens", "1").isdigit():
            raise ConfigError(f"tokens={own['tokens']} must be a whole number")
        own["checkpoint"] = told_checkpoint("checkpoint", own["checkpoint"])
        check_output("output", own["output"])
        from longspan.inference.attention_map import attention_weights
        from longspan.training.callbacks.attention_weights import weights_figure

        found = attention_weights(own["checkpoint"], words, CONF, int(own.get("tokens", 256)))
        figure = weights_figure(
            [(f"layer {layer}", weights) for layer, weights in found.layers], f"attention={found.variant}", found.causal
        )
        output = Path(own["output"])
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=120)
        print(f"Written: {output}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(sys.argv[1:])
