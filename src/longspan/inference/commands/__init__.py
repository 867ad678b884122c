"""The commands that work on checkpoints, as `scripts/` and the installed `longspan-...` call them."""
