"""Text from files and command lines stays text, in spreadsheets and in Markdown."""

from __future__ import annotations

import pytest

from longspan.records.inert import inert, markdown_block, markdown_code, markdown_text


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1+1"])
def test_a_formula_becomes_text(text):
    assert inert(text) == f"'{text}"


@pytest.mark.parametrize("value", ["local", "a=b", "-0.5", "+3", "-1e-5", "", 0.5, -3, None, True])
def test_what_is_none_stays(value):
    assert inert(value) == value


def test_markdown_shows_what_is_written():
    assert markdown_text("<script>alert(1)</script>") == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert markdown_text("a|b `c` *d*") == r"a\|b \`c\` \*d\*"
    assert markdown_text("[x](javascript:alert(1))") == r"[x]\(javascript:alert(1))"
    assert markdown_text("-0.012 [-0.020, -0.004]") == "-0.012 [-0.020, -0.004]"
    assert markdown_text("# no heading\nno\r\nlines") == r"\# no heading no lines"
    assert markdown_text("needle_distance, bits per byte") == "needle_distance, bits per byte"
    assert markdown_text("long " * 50, 20) == "long long long long" + "\N{HORIZONTAL ELLIPSIS}"


def test_code_cannot_be_closed_from_inside():
    assert markdown_code("a `b` c") == "``a `b` c``"
    assert markdown_code("`") == "`` ` ``"
    assert markdown_block(["```", "rm -rf"], "bash") == ["````bash", "```", "rm -rf", "````"]
