"""Longspan's attention where other projects' users already are: their names, their masks, their models."""
