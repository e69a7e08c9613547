"""`bitnas reproduce bars` and `bitnas compare`: what they print, and what they refuse."""

from __future__ import annotations

import json


def test_what_is_known_of_bars_is_shown_beside_ours(run, tmp_path):
    code, out, _ = run("reproduce", "bars", "--no-latency", "--out", str(tmp_path))
    assert code == 0
    for text in (
        "19,764,224 =",
        "358,612,992 =",
        "1,336,320 =",
        "375,390,208 =",
        "not checkable here",
        "29 equal, 8 not",
    ):
        assert text in out
    assert "\u2260" not in out
    assert (tmp_path / "report.html").exists()
    code, out, _ = run("reproduce", "bars", "--no-latency", "--row", "cells", "--json")
    assert code == 0
    assert json.loads(out)["tables"][0]["rows"][0]["value"]["ours"] == 59_049


def test_options_that_do_not_go_together_are_refused(run, tmp_path):
    new = str(tmp_path / "new")
    for arguments, word in (
        (["reproduce", "bars", "--study", "cells"], "--study needs --out"),
        (["reproduce", "bars", "--study", "topology", "--out", new], "wanted one of cells, guards, cost, parts"),
        (["reproduce", "bars", "--study", "cells", "--latency-table", "x", "--out", new], "an option of --study cost"),
        (["reproduce", "bars", "--ranking", "--out", new], "--ranking says nothing about bars"),
        (["reproduce", "bars", "--search-epochs", "2"], "--search-epochs says nothing about bars"),
        (["reproduce", "bars", "--table", "1"], "--table says nothing about bars"),
        (["reproduce", "nasbnn", "--study", "cells"], "--study says nothing about nasbnn"),
        (["reproduce", "shen2019", "--study", "cells"], "--study says nothing about shen2019"),
        (["compare", new, "--out", new], "is not a run folder"),
        (["compare", new, new, "--out", new, "--rates", "fast"], "--rates must be numbers"),
    ):
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert word in err
        assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
