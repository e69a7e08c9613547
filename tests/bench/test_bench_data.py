"""The bench of reading images: its pictures are real files, and every way reads all of them."""

import bench_data
from PIL import Image


def test_every_way_is_timed(monkeypatch):
    monkeypatch.setattr(bench_data, "ROUNDS", 1)
    rows = bench_data.measure(10, 1)
    assert len(rows) == 5
    assert all(row["processor_ms"] > 0 and row["images_per_second"] > 0 for row in rows.values())


def test_pictures(tmp_path):
    bench_data.make_pictures(tmp_path, 10)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == len({file.parent for file in files}) == 10
    with Image.open(files[0]) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
