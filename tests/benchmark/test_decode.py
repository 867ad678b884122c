"""The decode suite: a row a variant and position, and what a window's cache does not do."""

from longspan.benchmark.decode import available, draw, measure


def test_a_window_stays_as_large_as_it_was(tmp_path):
    rows = measure(["full", "local:window=16", "nsa"], [512, 1024], heads=2, head_dim=16)
    held = {(row["variant"], row["position"]): row["cache_bytes"] for row in rows}
    assert held["local:window=16", 512] == held["local:window=16", 1024]
    for name in ("full", "nsa"):
        assert held[name, 1024] > 1.6 * held[name, 512]
    assert all(row["ms"] > 0 for row in rows) and len(rows) == 6
    assert draw(rows, tmp_path / "decode.png").stat().st_size > 10_000
    assert "local" in available()
