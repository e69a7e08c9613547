"""A search of NAS-BNN: its front, the archive by OPs, the supernet's training, the subnets, what was deployed."""

from __future__ import annotations

from .. import agreement, findings, numbers, subnets
from ..figures import supernet as figures
from ..html import Section, bullets, details, figure, grid, note, paragraph, plain
from ..records import Run, number, setting
from ..supernet_log import ACCURACY, LOSS


def title(run: Run) -> str:
    data = setting(run.config, "data")
    return f"NAS-BNN: subnets of a binary supernet{f' on {data}' if isinstance(data, str) else ''}"


def headline(run: Run) -> str:
    return subnets.headline(run)


def front(run: Run) -> Section:
    name = "The front: accuracy against cost"
    found, images = subnets.costs(run), subnets.validation_images(run)
    if not found:
        return name, note("No subnet has been measured yet.")
    body = ""
    for cost in found:
        word = "latency" if run.predicted else "measured latency"
        caption = "Up and to the left is better; the dashed line is what can be had for a cost."
        caption += f" {subnets.range_sentence(run.front)}" if run.front and cost == found[0] else ""
        bars = [f"the 95 % interval of an accuracy on {images} images"] if images else []
        bars += ["that of the latency"] if cost == "latency_us" else []
        caption += f" Bars are {' and '.join(bars)}." if bars else ""
        if cost == "latency_us" and run.predicted:
            caption += (
                " The latencies of the small dots are predictions of a device table, those of the front measured."
            )
        if cost == "latency_us" and (shift := agreement.shift_sentence(run)):
            caption += f" {shift}"
        if line := subnets.line_sentence(run, cost):
            caption += f" {line}"
        if cost == "latency_us" and subnets.front_alone_timed(run):
            caption += (
                " Only the front was timed, when the search was over: how it stands against the other subnets is to be "
                "seen against OPs."
            )
        body += "<h3>Against latency</h3>" if cost == "latency_us" else "<h3>Against OPs</h3>"
        body += figure(lambda w, c=cost, t=word: figures.plane(run, c, t, images, w), caption)  # type: ignore[misc]
    meaning = "Accuracy is that of inherited weights, batch norm measured anew, on the search's validation images. "
    meaning += "The front was picked on these images, so its accuracies are a little too good; the test images decide."
    return name, body + note(meaning)


def archive(run: Run) -> Section | None:
    best, bucket = subnets.best_of_buckets(run), subnets.bucket_size(run)
    if not best or bucket is None:
        return None
    tops = [candidate.get("accuracy") or 0.0 for _, candidate in best]
    dominated = sum(any(a >= tops[i] for a in tops[:i]) for i in range(len(tops)))
    caption = f"{numbers.plural(len(best), 'bucket')} of {numbers.count(bucket)} OPs hold a subnet. "
    if subnets.is_archive(run):
        caption += "The search keeps the most accurate subnet of each and draws its parents from these."
    else:
        caption += "This search selects by dominance, not by buckets; they are drawn to compare with one that does."
    if dominated:
        caption += (
            f" In {dominated} of them a bucket of fewer OPs holds a subnet at least as accurate: an archive of buckets "
            "keeps such subnets, a front does not."
        )
    drawn = figure(lambda w: figures.buckets(best, bucket, run.candidates, w), caption)
    return "The archive by OPs", drawn


def training(run: Run) -> Section | None:
    rows = run.supernet_log
    if not rows:
        return None
    last = rows[-1]
    caption = f"{numbers.plural(len(rows), 'epoch')}; the loss ended at {last[LOSS]:.3f}."
    judged = [row for row in rows if ACCURACY in row]
    if judged:
        best = max(judged, key=lambda row: row[ACCURACY])
        caption += f" Validation accuracy ended at {numbers.percent(judged[-1][ACCURACY])}"
        if len(judged) > 1:
            caption += f", the best was {numbers.percent(best[ACCURACY])} in epoch {best['epoch'] + 1:.0f}"
        caption += "."
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    caption += f" It took {numbers.duration(1e6 * seconds)}." if seconds else ""
    if len(rows) == 1:
        return "Training of the supernet", paragraph(caption)
    return "Training of the supernet", figure(lambda w: figures.curves(rows, w), caption)


def architectures(run: Run) -> Section | None:
    shown = figures.drawn(run.front)
    if not shown:
        return None
    caption = "One bar a block, as long as its channels; beside it channels/kernel/groups."
    if len(shown) < len(run.front):
        caption += f" {len(shown)} of the front's {len(run.front)} are drawn."
    accuracies = [network.get("accuracy") or 0.0 for network in shown]
    if len(shown) > 1:
        caption += " They stand in the order of the front"
        caption += ", the most accurate first." if accuracies == sorted(accuracies, reverse=True) else "."
    caption += f" {_habits(run)}"
    return "What the subnets look like", figure(lambda w: figures.blocks(shown, w), caption)


def _habits(run: Run) -> str:
    """How deep the front's subnets are, and how often a block has a large kernel."""
    known = [n.subnet for n in run.front if n.subnet is not None]
    depths = [len(subnet["blocks"]) for subnet in known]
    every = [block for subnet in known for block in subnet["blocks"]]
    large = sum(block["kernel"] > 3 for block in every)
    deep = f"{min(depths)} to {max(depths)} blocks" if min(depths) < max(depths) else f"{depths[0]} blocks"
    return (
        f"The front's subnets have {deep}; {numbers.percent(large / len(every), 0)} of these have a kernel above 3 × 3."
    )


def deployed(run: Run) -> Section:
    name = "Deployed: inherited weights and fine-tuned ones"
    if not run.networks:
        return name, note("No subnet has been deployed yet: `bitnas resume --study` does it.")
    images = number(run.protocol, "test_images")
    caption = "Frozen networks: accuracy on test images that neither supernet nor search has seen"
    caption += f" ({images:.0f}), " if images else ", "
    caption += "with its 95 % interval, against the latency measured on this machine with its spread."
    noisy = list(dict.fromkeys(n.pair for n in run.networks if n.get("latency_us") and findings.noisy(n)))
    if noisy:
        caption += (
            f" Timing noisy: {', '.join(noisy)}. Other programs were using the machine, so these latencies, and how "
            "many times as long a float twin takes, are not settled."
        )
    body = figure(lambda w: figures.deployed(run.networks, w), caption, "No deployed subnet has a latency.")
    body += bullets([*subnets.tuning_sentences(run), *findings.not_compared(run)])
    rows = [[(str(key), ""), (plain(value), "text")] for key, value in run.protocol.items()]
    return name, body + details("How they were made", grid(["step", "what"], rows))
