"""Learning curves that stay small however long a run is."""

from __future__ import annotations

from typing import Any

from longspan.records.jsonable import figure


class Curves:
    """{metric: [(step, value), ...]}, each thinned evenly to at most `limit` points, the newest always kept."""

    def __init__(self, limit: int = 400) -> None:
        if limit < 4:
            raise ValueError(f"limit must be at least 4 points a curve, got {limit}")
        self.limit = limit
        self._points: dict[str, list[tuple[int, Any]]] = {}

    def add(self, name: str, step: int, value: Any) -> None:
        """A later value at a step that is already there replaces it, so that a resumed run does not count twice."""
        points = self._points.setdefault(name, [])
        while points and points[-1][0] >= step:
            points.pop()
        points.append((int(step), figure(value)))
        if len(points) > self.limit:
            self._points[name] = points[:-1:2] + points[-1:]

    def as_dict(self) -> dict[str, list[tuple[int, Any]]]:
        return {name: list(points) for name, points in self._points.items()}

    def load(self, content: dict[str, list[tuple[int, Any]]]) -> None:
        """Go on from what :meth:`as_dict` gave."""
        self._points = {name: [(int(step), value) for step, value in points] for name, points in content.items()}
