"""What is done with a supernet after its training: subnets deployed, and the studies of what the method claims."""

import itertools
import json
import math
import random
import sqlite3

import pytest
import torch

from bitnas.files import CorruptFileError, read_json_checked
from bitnas.methods import fronts, intervals, trials
from bitnas.methods.nasbnn import ablation, against, deploy, evaluate, ranking, studies
from bitnas.methods.nasbnn.config import preset
from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, Stage
from bitnas.methods.nasbnn.search import search
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.search.pareto import hypervolume_2d

TINY = Description(
    name="tiny",
    input_size=(1, 8, 8),
    num_classes=10,
    stem=(8, 16),
    stages=(
        Stage(channels=(16, 32), depths=(1, 2)),
        Stage(channels=(32, 64), depths=(1,), kernels=(3, 5), groups=(1, 2), stride=2),
    ),
)
QUICK = {
    "space": TINY.to_dict(),
    "supernet_epochs": 1,
    "calibration_batches": 1,
    "calibration_size": 64,
    "ops_low": 0.0,
    "ops_high": 1e9,
    "latency_batch": 1,
    "workers": 0,
    "timeout": None,
}
DATA = "digits:20"


def test_wilson_intervals_are_the_published_ones_and_stay_inside():
    found = intervals.wilson(8, 10)
    assert (found.mean, round(found.low, 4), round(found.high, 4)) == (0.8, 0.4902, 0.9433)
    assert intervals.wilson(0, 20).low == 0
    assert intervals.wilson(20, 20).high == 1
    assert intervals.wilson(0, 20).high > 0.1
    for correct, total in ((3, 2), (0, 0), (-1, 5)):
        with pytest.raises(ValueError, match="correct, total: got"):
            intervals.wilson(correct, total)


def test_a_paired_interval_covers_the_true_difference():
    """5 % of intervals of two networks, of which one is 10 points better, miss that."""
    rng, missed = random.Random(0), 0
    for _ in range(400):
        first = [rng.random() < 0.8 for _ in range(150)]
        second = [a if rng.random() < 0.5 else rng.random() < 0.6 for a in first]  # 0.7 on average
        found = intervals.paired(first, second)
        missed += not found.low <= 0.1 <= found.high
    assert missed <= 0.08 * 400
    same = [True, False] * 30
    assert intervals.paired(same, same).low < 0 < intervals.paired(same, same).high
    with pytest.raises(ValueError, match="got 1 and 2 images"):
        intervals.paired([True], [True, False])


def test_kendall_is_scipys_with_ties_and_none_without_order():
    from scipy.stats import kendalltau

    rng = random.Random(1)
    for _ in range(50):
        a, b = ([rng.randrange(6) for _ in range(12)] for _ in range(2))
        assert intervals.kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)
    assert intervals.kendall([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="got 2 and 3 values"):
        intervals.kendall([1, 2], [1, 2, 3])


def test_the_bootstrap_is_seeded_and_narrows_with_more_items():
    rng = random.Random(2)
    values = [rng.random() for _ in range(400)]

    def mean(chosen):
        return sum(values[i] for i in chosen) / len(chosen)

    few, many = intervals.bootstrap(mean, 25, repeats=500), intervals.bootstrap(mean, 400, repeats=500)
    assert few == intervals.bootstrap(mean, 25, repeats=500)
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert few.low <= few.mean <= few.high
    assert intervals.bootstrap(lambda chosen: None, 5) is None


def rows(count, own, seed=0):
    """Made-up subnets: accuracy alone grows with OPs; `own` is inherited accuracy of (size, quality beside size)."""
    rng, found = random.Random(seed), []
    for index in range(count):
        quality = rng.gauss(0, 1)
        alone = 0.5 + 0.01 * index + 0.03 * quality
        inherited = own(index, quality)
        found.append(
            {"ops": 1e3 * (index + 1), "inherited": inherited, "inherited_val": inherited, "alone": alone,
             "alone_test": alone, "alone_runs": [alone, alone + 0.001 * rng.gauss(0, 1)]}
        )  # fmt: skip
    return found


def test_correlations_tell_inherited_ranks_from_those_of_ops():
    knowing = ranking.correlations(rows(24, lambda size, quality: 0.01 * size + 0.03 * quality), resamples=300)
    assert knowing["inherited"]["mean"] == 1
    assert knowing["inherited"]["low"] == 1
    assert knowing["repeats"]["mean"] > 0.9
    assert knowing["inherited"]["spearman"] == pytest.approx(1)
    assert knowing["beside_ops"] == {"mean": 1, "p": pytest.approx(1 / 301)}
    assert knowing["beyond_ops"]["low"] > 0
    said = " ".join(ranking.verdicts(knowing))
    assert "ranks better than OPs alone do" in said
    assert "knows what tells subnets apart" in said

    # Inherited accuracy that follows OPs and knows nothing else.
    noise = random.Random(5)
    blind = ranking.correlations(rows(24, lambda size, quality: size + 3 * noise.gauss(0, 1)), resamples=300)
    assert blind["inherited"]["low"] > 0
    assert blind["beside_ops"]["p"] > 0.1
    said = " ".join(ranking.verdicts(blind))
    assert "cannot be told to know" in said
    assert "It ranks better" not in said
    flat = ranking.correlations([{**row, "inherited": 0.5} for row in rows(6, lambda *_: 0.5)], resamples=50)
    assert flat["inherited"] is None
    assert ranking.verdicts(flat)[0].startswith("All subnets are equally accurate")


def test_subnets_are_spread_over_the_ops_of_the_space():
    space = SubnetSpace(DESCRIPTIONS["small"])
    chosen = studies.spread(space, 9, seed=3)
    ops = [float(space.cost(genome).ops) for genome in chosen]
    assert chosen == studies.spread(space, 9, seed=3)
    assert len({space.subnet(g).key() for g in chosen}) == 9
    assert (ops[0], ops[-1]) == tuple(float(space.cost(g).ops) for g in (space.smallest, space.biggest))
    steps = [math.log(b / a) for a, b in itertools.pairwise(ops)]
    assert min(steps) > 0.5 * max(steps)
    with pytest.raises(ValueError, match="subnets: got 1, wanted at least 2"):
        studies.spread(space, 1, seed=0)
    drawn = studies.random_subnets(space, 5, seed=1)
    assert len({space.subnet(g).key() for g in drawn}) == 5
    assert space.smallest not in drawn
    with pytest.raises(ValueError, match="subnets: got 5000, wanted at most"):
        studies.random_subnets(SubnetSpace(TINY), 5000, seed=0)


def test_ranking_trains_judges_and_goes_on_from_its_journal(tmp_path, monkeypatch):
    options = {"data": DATA, "subnets": 3, "repeats": 2, "epochs": 1, "settings": QUICK}
    events = []
    found = ranking.ranking(tmp_path, **options, on_progress=events.append)
    assert {e["event"] for e in events} == {"ranking_supernet", "ranking_inherited", "ranking_alone"}
    assert found == read_json_checked(tmp_path / "ranking.json")
    assert [row["ops"] for row in found["subnets"]] == sorted(row["ops"] for row in found["subnets"])
    assert found["images"] == 80
    assert all(len(row["alone_runs"]) == 2 for row in found["subnets"])

    # The inherited accuracy is that of the supernet in the folder, by the search's own measure.
    config = preset(DATA, **QUICK)
    row = found["subnets"][-1]
    own = studies.inherit(
        config, evaluate.search_space(config).subnet(evaluate.search_space(config).biggest),
        studies.supernet_path(tmp_path, "ranking"), trials.parts(config).train,
    )  # fmt: skip
    assert sum(trials.predictions(own, trials.parts(config).held)) / 80 == pytest.approx(row["inherited"])

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("bitnas.train.fit", refuse)
    monkeypatch.setattr("bitnas.methods.nasbnn.training.fit", refuse)
    again = ranking.ranking(tmp_path, **options)
    assert again["subnets"] == found["subnets"]
    assert again["correlations"] == found["correlations"]
    with pytest.raises(Exception, match="settings"):
        ranking.ranking(tmp_path, **{**options, "epochs": 2})


@pytest.mark.parametrize(("name", "value"), [("subnets", 2), ("repeats", 1), ("epochs", -1)])
def test_ranking_refuses_what_it_cannot_do(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        ranking.ranking(tmp_path / "new", data=DATA, settings=QUICK, **{name: value})
    assert not (tmp_path / "new").exists()


def test_supernets_stopped_within_their_training_go_on(tmp_path, monkeypatch):
    """A checkpoint is what a killed study leaves; the result is that of one which was not."""
    from bitnas.methods.nasbnn import training

    values = preset(DATA, **{**QUICK, "supernet_epochs": 2}).to_dict()
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    studies.make_supernet((), values, str(whole))
    real = training.train_supernet

    def interrupted(*args, **options):
        def stop(epoch):
            raise KeyboardInterrupt

        return real(*args, **options, on_epoch=stop)

    monkeypatch.setattr(training, "train_supernet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        studies.make_supernet((), values, str(stopped))
    monkeypatch.setattr(training, "train_supernet", real)
    assert stopped.with_suffix(".ckpt.safetensors").exists()
    assert not stopped.exists()
    studies.make_supernet((), values, str(stopped))
    assert stopped.read_bytes() == whole.read_bytes()
    assert not stopped.with_suffix(".ckpt.safetensors").exists()


def test_an_ablation_says_no_more_than_its_interval():
    def said(runs):
        whole = [dict.fromkeys(ablation.GROUPS, 0.8 + run) for run in runs]
        plain = [dict.fromkeys(ablation.GROUPS, 0.8) for _ in runs]
        (found,) = ablation.corrected([ablation._difference("without Bi-Teacher", "mean", whole, plain, 0.5)])
        return ablation.verdict(found)

    assert said([0.1, 0.101, 0.099]).startswith("Bi-Teacher brings accuracy (+10.0 points")
    assert said([-0.1, -0.101, -0.099]).startswith("Bi-Teacher costs accuracy here")
    assert said([0.1, -0.05, 0.02]).startswith("Bi-Teacher: no difference can be told")
    assert said([0.1]).endswith("which decides nothing.")


@pytest.mark.parametrize("runs", [[0.1, 0.1], [-0.1] * 3, [0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6]])
def test_equal_differences_of_few_seeds_decide_nothing(runs):
    """A t test takes two equal differences for certain: their variance is 0, to rounding in the last case."""
    one = ablation.paired_runs(runs, 0.3)
    assert one["p"] == 2.0 ** (1 - len(runs))
    assert one["low"] < 0 < one["high"]
    (found,) = ablation.corrected([one])
    assert found["outcome"] == "undecided"
    seven = ablation.paired_runs([0.1] * 7, 0.3)
    assert seven["p"] == pytest.approx(1 / 64)
    assert 0 < seven["low"] < 0.1 < seven["high"]
    none = ablation.paired_runs([0.0] * 3, 0.3)
    assert (none["p"], none["low"], none["high"]) == (1.0, 0.0, 0.0)


def test_verdicts_allow_for_being_several():
    """Of four differences that are 0, one in seven families or so would be told from 0 without a correction."""
    one = ablation.paired_runs([0.02, 0.05, 0.03, 0.04], 0.3)
    assert 0.0125 < one["p"] < 0.05
    assert one["low"] > 0
    alone, family = ablation.corrected([one]), ablation.corrected([one, *[ablation.paired_runs([0.1, -0.1], 0.3)] * 3])
    assert (alone[0]["outcome"], alone[0]["p_holm"]) == ("better", one["p"])
    assert family[0]["outcome"] == "undecided"
    assert family[0]["p_holm"] == pytest.approx(4 * one["p"])
    text = ablation.verdict({"variant": "none", **family[0]})
    assert text.startswith("All strategies together: no difference can be told (+3.5 points, 95 % interval +")
    assert text.endswith("4 seeds, p 0.14 among 4 verdicts).")

    # Holm by hand: 4 x 0.01, 3 x 0.02, 2 x 0.022 raised to the one before, 1 x 0.5.
    found = ablation.corrected([{"p": p, "mean": -1.0} for p in (0.5, 0.02, 0.01, 0.022)])
    assert [each["p_holm"] for each in found] == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert [each["outcome"] for each in found] == ["undecided", "undecided", "worse", "undecided"]
    assert ablation.corrected([ablation.paired_runs([0.1], 0.3)]) == [{"runs": [0.1], "mean": 0.1}]

    rng, wrong = random.Random(4), {"each": 0, "corrected": 0}
    for _ in range(400):
        tests = [ablation.paired_runs([rng.gauss(0, 1) for _ in range(3)], 0.0) for _ in range(4)]
        wrong["each"] += any(test["p"] <= 0.05 for test in tests)
        wrong["corrected"] += any(test["outcome"] != "undecided" for test in ablation.corrected(tests))
    assert wrong["each"] > 0.12 * 400
    assert wrong["corrected"] < 0.08 * 400


@pytest.mark.parametrize(
    ("seeds", "variants"),
    [(1, ("all", "without Weight Normalization")), pytest.param(2, None, marks=pytest.mark.slow)],
)
def test_ablation_trains_every_variant_and_can_be_given_more_seeds(tmp_path, monkeypatch, seeds, variants):
    if variants:
        monkeypatch.setattr(ablation, "VARIANTS", {name: ablation.VARIANTS[name] for name in variants})
    found = ablation.ablation(tmp_path, data=DATA, seeds=seeds, subnets=2, settings=QUICK)
    assert found == read_json_checked(tmp_path / "ablation.json")
    assert [one["name"] for one in found["variants"]] == list(ablation.VARIANTS)
    assert found["variants"][-1]["strategies"]["weight_normalization"] is False
    files = {path.name: path.read_bytes() for path in (tmp_path / "supernets").glob("*.safetensors")}
    assert len(files) == len(set(files.values())) == seeds * len(ablation.VARIANTS)
    if not variants:
        more = ablation.ablation(tmp_path, data=DATA, seeds=seeds + 1, subnets=2, settings=QUICK)
        for old, new in zip(found["variants"], more["variants"], strict=True):
            assert new["accuracy"]["mean"]["runs"][:seeds] == old["accuracy"]["mean"]["runs"]


def network(method, training, latency, accuracy, search_accuracy=None):
    known = accuracy if search_accuracy is None else search_accuracy
    row = {"method": method, "training": training, "latency_us": latency}
    return {**row, "accuracy": accuracy, "search_accuracy": known}


def test_areas_of_fronts_by_hand():
    """Two networks over a reference of (105 us, error 0.42): rectangles whose area is known."""
    seeds = [
        {
            "test_images": 100,
            "train_images": 300,
            "networks": [
                network("searched", "inherited", 50.0, 0.9),
                network("searched", "inherited", 100.0, 0.95),
                network("random", "inherited", 100.0, 0.6),
            ],
        }
        for _ in range(2)
    ]
    found = against.compared(seeds)
    assert found["reference"] == {"latency_us": pytest.approx(105), "accuracy": pytest.approx(0.58)}
    area = ((100 - 50) * (0.42 - 0.1) + (105 - 100) * (0.42 - 0.05)) / (105 * 0.42)
    assert found["areas"]["searched, inherited"] == pytest.approx([area, area])
    assert found["areas"]["random, inherited"] == pytest.approx([5 * 0.02 / (105 * 0.42)] * 2)
    (one,) = found["comparisons"]
    assert (one["outcome"], one["p"]) == ("undecided", 0.5)  # two seeds that are the same
    assert "no difference can be told (+40.2 % of the area" in one["verdict"]
    alone = against.compared(seeds[:1])["comparisons"][0]
    assert "decides nothing" in alone["verdict"]
    assert "low" not in alone


def test_a_network_that_validation_would_not_choose_counts_for_nothing():
    """However accurate it is on test images: a front must not gain by having many members."""
    plain = [network("searched", "inherited", 50.0, 0.9, 0.9), network("random", "inherited", 100.0, 0.6)]
    lucky = [*plain, network("searched", "inherited", 60.0, 0.99, 0.8)]
    worse = [*plain, network("searched", "inherited", 60.0, 0.7, 0.95)]

    def area(networks):
        seed = {"test_images": 100, "train_images": 300, "networks": networks}
        return against.compared([seed])["areas"]["searched, inherited"][0]

    assert area(lucky) == pytest.approx(area(plain))
    assert area(worse) < area(plain)


def drawn_front(rng, count):
    rows = [{"latency_us": rng.uniform(10, 100), "accuracy": rng.uniform(0.5, 0.6)} for _ in range(count)]
    return [{**row, "accuracy": row["accuracy"] + 0.003 * row["latency_us"] ** 0.9} for row in rows]


def dominated(rows, corner):
    return hypervolume_2d([(row["latency_us"], 1 - row["accuracy"]) for row in rows], corner)


def test_a_front_with_more_networks_is_never_judged_worse():
    rng, shorter = random.Random(6), 0
    for _ in range(60):
        rows = drawn_front(rng, 48)
        more = [*rows, *drawn_front(rng, 3), {"latency_us": 9.0, "accuracy": 0.5}]
        edges = [fronts.edge(front) for front in (rows, more)]
        corner = fronts.corner([row for edge in edges for row in edge])
        for picks in (2, 4, 12):
            less, most = (dominated(fronts.most(edge, picks, corner), corner) for edge in edges)
            assert most >= less - 1e-12
        assert fronts.most(edges[0], 48, corner) == edges[0]
        shorter += len(edges[1]) > 4
    assert shorter > 30


def test_the_networks_that_judge_an_edge_are_those_that_dominate_most():
    rng = random.Random(7)
    for _ in range(20):
        edge = fronts.edge(drawn_front(rng, 30))
        corner = fronts.corner(edge)
        for picks in range(1, 5):
            chosen = fronts.most(edge, picks, corner)
            assert len(chosen) == min(picks, len(edge))
            best = max(dominated(some, corner) for some in itertools.combinations(edge, len(chosen)))
            assert dominated(chosen, corner) == pytest.approx(best, rel=1e-12)


def test_random_subnets_begin_and_are_timed_as_the_searched_ones(tmp_path):
    values = {**QUICK, "objectives": ("accuracy", "ops", "latency"), "population": 4, "generations": 1}
    config = search(preset(DATA, **values), tmp_path / "nasbnn").config
    space, events = evaluate.search_space(config), []
    rows = against._random_front(tmp_path, config, 5, events.append)
    assert len({event["key"] for event in events if event["event"] == "evaluated"}) == 5
    timed = [event for event in events if event["event"] == "front_timing"]
    assert timed[0]["networks"] >= len(rows) > 0
    assert all({"latency_us", "searched_latency_us"} <= row.keys() for row in rows)
    with sqlite3.connect(tmp_path / "random.sqlite") as journal:
        kept = "\n".join(map(repr, journal.execute("select * from evaluations").fetchall()))
    for end in (space.smallest, space.biggest):
        assert space.subnet(end).key() in kept
    again = []
    assert against._random_front(tmp_path, config, 5, again.append) == rows
    assert "front_timing" not in {event["event"] for event in again}


def test_deployed_subnets_are_frozen_verified_timed_and_kept(tmp_path):
    config = preset(DATA, **QUICK, population=4, generations=1, bucket=1e3)
    search(config, tmp_path)
    seen = []
    found = deploy.deploy(tmp_path, picks=2, fine_tune_epochs=1, on_progress=seen.append)
    assert found == read_json_checked(tmp_path / "study.json")
    rows = found["networks"]
    assert {(row["pair"], row["kind"]) for row in rows} == {
        (pair, kind) for pair in "AB"[: len(rows) // 2] for kind in ("inherited", "fine-tuned")
    }
    import bitnas
    from bitnas.models import create_model

    x = trials.parts(config).test.take(torch.arange(4))
    for row in rows:
        assert row["verified"]["ok"]
        assert row["latency_us"] > 0
        assert row["float_latency_us"] > 0
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert row["test_images"] == 40
        frozen = bitnas.load(tmp_path / row["file"])
        right = trials.predictions(frozen, trials.parts(config).test)
        assert sum(right) / len(right) == pytest.approx(row["accuracy"])
        trained = bitnas.load_model(tmp_path / "networks" / "float" / f"{row['pair']}-{row['kind']}.safetensors")
        assert bitnas.verify(trained, frozen, x).ok
        pixels = (255 * x).round().to(torch.uint8)  # a deployed network can be frozen anew, for bytes
        assert torch.allclose(bitnas.freeze(trained, pixels=(0.0, 1.0))(pixels), trained(pixels / 255), atol=1e-4)
        model = create_model(tmp_path / row["architecture"])
        assert model(x).shape == (4, 10)
        assert model.config.to_dict() == row["subnet"]
    assert len(found["claims"]) == len(rows) // 2
    timed = ("latency_us", "latency_iqr_us", "latency_noisy", "float_latency_us", "float_latency_iqr_us", "layers")
    for pair in {row["pair"] for row in rows}:
        inherited, tuned = (row for row in rows if row["pair"] == pair)
        assert [inherited[name] for name in timed] == [tuned[name] for name in timed]
    journal = (tmp_path / "journal.sqlite").read_bytes()
    seen.clear()
    assert deploy.deploy(tmp_path, picks=2, fine_tune_epochs=1, on_progress=seen.append) == found
    assert all(event["replayed"] for event in seen if event["event"] == "study_deploy")
    assert (tmp_path / "journal.sqlite").read_bytes() == journal


def test_picks_go_from_the_cheapest_to_the_most_accurate():
    config = preset(DATA, **QUICK)
    space = evaluate.search_space(config, window=False)
    rng = random.Random(0)
    front = [
        {"genome": list(space.random(rng)), "ops": ops, "accuracy": accuracy}
        for ops, accuracy in ((3.0, 0.7), (1.0, 0.5), (2.0, 0.6), (4.0, 0.65), (5.0, 0.9))
    ]
    assert [pick.row["ops"] for pick in deploy.choose(front, config, 3)] == [1.0, 3.0, 5.0]
    assert [pick.row["ops"] for pick in deploy.choose(front, config, 1)] == [5.0]
    assert [pick.row["ops"] for pick in deploy.choose(front, config, 9)] == [1.0, 2.0, 3.0, 5.0]
    for bad in ([], [{**front[0], "accuracy": float("nan")}], [{"ops": 1.0, "accuracy": 0.5}]):
        with pytest.raises(CorruptFileError, match="is not the front of this run"):
            deploy.choose(bad, config, 3)


def test_deploy_needs_a_finished_search(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        deploy.deploy(tmp_path)
    with pytest.raises(ValueError, match="picks: got 0"):
        deploy.deploy(tmp_path, picks=0)


@pytest.mark.slow
def test_three_fronts_are_searched_trained_timed_and_compared(tmp_path):
    options = {"data": DATA, "seeds": 2, "population": 4, "generations": 2, "picks": 2, "epochs": 1,
               "fine_tune_epochs": 1, "settings": QUICK}  # fmt: skip
    found = against.against(tmp_path, **options)
    assert found == read_json_checked(tmp_path / "against.json")
    assert found["complete"]
    for seed in found["seeds"]:
        kinds = {(row["method"], row["training"]) for row in seed["networks"]}
        assert kinds == {("searched", "inherited"), ("searched", "fine-tuned"), ("random", "inherited"),
                         ("random", "fine-tuned"), ("widths", "from scratch")}  # fmt: skip
        assert seed["evaluated"]["searched"] == seed["evaluated"]["random"]
        assert all(row["latency_low_us"] <= row["latency_us"] <= row["latency_high_us"] for row in seed["networks"])
    again = against.against(tmp_path, **options)
    assert json.dumps(again["seeds"], default=str).count("latency_us") > 0
    assert [seed["networks"] for seed in again["seeds"]] == [seed["networks"] for seed in found["seeds"]]
