"""`bitnas reproduce` as a user meets it."""

from __future__ import annotations

import json

import pytest


def test_tables_and_findings_are_shown(run):
    code, out, _ = run("reproduce", "shen2019", "--no-latency")
    assert code == 0
    assert "13,189,120 =" in out
    assert "53.7 ≠" in out
    assert "{5/5}" in out
    assert "22 equal" in out


def test_json_is_what_the_folder_holds(run, tmp_path):
    folder = tmp_path / "made here"
    code, out, _ = run("reproduce", "shen2019", "--no-latency", "--table", "1", "--out", str(folder), "--json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "reproduction.json").read_text())
    assert [table["table"] for table in json.loads(out)["tables"]] == [1]
    assert (folder / "table1.csv").is_file()
    assert (folder / "reproduction.md").is_file()


def test_wrong_arguments_end_in_one_line(run):
    for arguments, word in (
        (["shen2020"], "shen2019"),
        (["shen2019", "--table", "3", "--no-latency"], "tables"),
        (["shen2019", "--train"], "--data"),
        (["shen2019", "--no-latency", "--data", "nothing"], "nothing"),
    ):
        code, _, err = run("reproduce", *arguments)
        assert code == 2
        assert word in err
        assert len(err.strip().splitlines()) == 1


def test_the_claim_needs_a_folder(run):
    code, _, err = run("reproduce", "shen2019", "--claim")
    assert code == 2
    assert "--out" in err


def test_what_is_known_of_nasbnn_is_shown_beside_ours(run, tmp_path):
    folder = tmp_path / "made here"
    code, out, _ = run("reproduce", "nasbnn", "--no-latency", "--out", str(folder))
    assert code == 0
    for text in ("331,814,248 =", "66,508,159 =", "3.3235e+17 =", "68.20 %", "not checkable here", "29 equal, 5 not"):
        assert text in out
    assert "≠" not in out
    code, out, _ = run("reproduce", "nasbnn", "--no-latency", "--out", str(folder), "--row", "size", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "reproduction.json").read_text())
    assert [row["key"] for table in json.loads(out)["tables"] for row in table["rows"]] == ["size"]


def test_an_option_of_the_other_paper_is_refused(run, tmp_path):
    for arguments, word in (
        (["nasbnn", "--table", "1"], "--table says nothing about nasbnn"),
        (["nasbnn", "--claim", "--out", str(tmp_path)], "--claim says nothing about nasbnn"),
        (["nasbnn", "--seeds", "3"], "--seeds says nothing about nasbnn"),
        (["nasbnn", "--base-width", "2"], "--base-width says nothing about nasbnn"),
        (["nasbnn", "--row", "nothing"], "wanted one of smallest"),
        (["shen2019", "--ranking"], "--ranking says nothing about shen2019"),
    ):
        code, _, err = run("reproduce", *arguments)
        assert code == 2
        assert word in err
        assert len(err.strip().splitlines()) == 1


def test_help_is_there(run):
    code, out, _ = run("reproduce", "--help")
    assert code == 0
    assert all(option in out for option in ("--json", "--claim", "--train", "--no-latency"))


@pytest.mark.slow
def test_the_claim_is_shown_and_goes_on(run, tmp_path):
    command = ["reproduce", "shen2019", "--claim", "--out", str(tmp_path), "--seeds", "2", "--epochs", "1"]
    command += ["--population", "3", "--generations", "1", "--workers", "0", "--repeats", "2"]
    code, out, _ = run(*command)
    assert code == 0
    assert "seed 1: uniform" in out
    assert "of 2 seeds" in out
    code, out, _ = run(*command, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "claim.json").read_text())


def test_seeds_are_a_number_or_a_list(run, tmp_path):
    code, _, err = run("reproduce", "shen2019", "--claim", "--out", str(tmp_path), "--seeds", "three")
    assert code == 2
    assert "--seeds: got 'three', wanted a number such as 3, or seeds such as 3,4,5" in err
    from bitnas.cli.reproduce import _seeds

    assert (_seeds("4"), _seeds("4,"), _seeds("3,5")) == (4, [4], [3, 5])
