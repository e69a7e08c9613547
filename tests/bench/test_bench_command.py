"""The short form, `bitnas bench`: ratios with warm and cold caches, and one line on where binary loses."""

from bitnas.cli.bench import _losses, _table
from bitnas.cli.output import console

ROW = {"name": "a", "batch": 1, "threads": 1, "isa": "avx2", "gops": {"bitnas": 9}}


def test_warm_and_cold_ratios(capsys):
    row = {**ROW, "ms": {"bitnas": 1.0, "float32": 4.0, "int8": 0.5}}
    row["cold_ms"] = {"bitnas": 2.0, "float32": 5.0}
    console().print(_table({"rows": [row]}))
    out = capsys.readouterr().out
    for words in ("4.0000   4.00× (2.5×)", "0.5000   0.50×  ", "slower than int8"):
        assert words in out


def test_names_are_whole_however_wide_the_table(capsys):
    names = ["a_layer_with_quite_a_long_name", "b"]
    ms = {"bitnas": 1e4, **dict.fromkeys(("float32", "bfloat16", "int8"), 123456.0)}
    rows = [{**ROW, "name": name, "ms": ms, "cold_ms": ms, "noisy": []} for name in names]
    console().print(_table({"rows": rows}))
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_where_binary_loses():
    loss = {"name": "a", "batch": 2, "threads": 1, "isa": "avx2", "to": "int8", "ratio": 0.5}
    losses = [{**loss, "cold": False}, {**loss, "ratio": 0.9, "cold": True}]
    assert _losses({"losses": losses}) == (
        "binary loses: a (batch 2, 1 thread(s)) to int8, 0.50×; a (batch 2, 1 thread(s), cold caches) to int8, 0.90×"
    )
    assert _losses({"losses": []}) == "binary loses nowhere in this list"
