"""Goes on with a text, by a trained language model, or writes the target of a source, by an encoder-decoder; what it writes
comes to the terminal as it is chosen.

    python scripts/generate.py checkpoint=RUN prompt="The quick brown"
    python scripts/generate.py checkpoint=RUN prompt=ACGT max_new_tokens=500 temperature=0.8 top_k=5 seed=1

`checkpoint` is a .ckpt file, a run's folder or a folder of save_pretrained. temperature=0 takes the most likely token.
"""

from __future__ import annotations

from longspan.inference.commands.generate import main

if __name__ == "__main__":
    main(program="python scripts/generate.py")
