"""What it takes to get the same again: command, settings, seed, machine, versions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

from ..html import Section, details, grid, note, paragraph, plain
from ..records import Run, setting

_REPRODUCE = ("data", "recipe", "epochs", "base_width", "batch", "threads", "seed")
_CLAIM = {"epochs": "protocol", "population": "settings", "generations": "settings"}
_DEFAULTS = {"base_width": 1.0, "batch": 1, "threads": 1, "seed": 0}


def environment(run: Run) -> Section:
    parts = []
    if run.config:
        parts.append(_commanded(run.config, "The configuration does not name the command that made this run."))
    if run.reproduction:
        parts.append(f"<pre>{escape(reproduction_command(run.reproduction))}</pre>")
        parts.append(paragraph("A command that is stopped and given again goes on at the next row."))
        parts += _facts({"machine": run.reproduction.get("machine")})
        parts.append(_settings("Settings of the reproduction", run.reproduction["settings"]))
    for found in filter(None, (run.ranking, run.ablation, run.against, *run.cell_studies.values(), run.comparison)):
        parts.append(f"<pre>{escape(str(found['command']))}</pre>")
        parts.append(paragraph("A command that is stopped and given again goes on at the next training."))
        parts += _facts(found)
        parts.append(_settings("Settings of the study", found.get("settings") or {}))
        parts.append(_settings("Settings of its searches and supernets", found.get("search") or {}))
    if run.claim:
        parts.append(f"<pre>{escape(claim_command(run.claim))}</pre>")
        parts.append(paragraph("A command that is stopped and given again goes on at the next training."))
        parts += _facts(run.claim_config)
        parts.append(_settings("Settings of the claim's searches", run.claim["settings"]))
    return "How to reproduce this", "".join(parts)


def _commanded(config: Mapping[str, Any], absent: str) -> str:
    command = setting(config, "command")
    if isinstance(command, list):
        command = shlex.join(str(word) for word in command)
    parts = [f"<pre>{escape(str(command))}</pre>" if command else note(absent)]
    if setting(config, "seed") is not None:
        parts.append(paragraph(f"Seed: {setting(config, 'seed')}."))
    parts += _facts(config)
    whole = escape(json.dumps(config, indent=2, ensure_ascii=False, default=str))
    parts.append(details("Full configuration", f"<pre>{whole}</pre>"))
    return "".join(parts)


def _facts(config: Mapping[str, Any]) -> list[str]:
    found = []
    for name, title in (("machine", "Machine"), ("versions", "Versions")):
        facts = setting(config, name)
        if isinstance(facts, dict) and facts:
            rows = [[(str(k), ""), (plain(v), "text")] for k, v in facts.items()]
            found.append(f"<h3>{title}</h3>{grid(['fact', 'value'], rows)}")
    return found


def _settings(title: str, settings: Mapping[str, Any]) -> str:
    rows = [[(str(k), ""), (plain(v), "text")] for k, v in settings.items()]
    return details(title, grid(["setting", "value"], rows))


def reproduction_command(reproduction: Mapping[str, Any]) -> str:
    """The command that recomputes the tables: as recorded, else from the settings."""
    if reproduction.get("command"):
        return str(reproduction["command"])
    settings = reproduction["settings"]
    words = ["bitnas", "reproduce", "shen2019", "--out", "DIR"]
    tables = settings.get("tables")
    words += ["--table", str(tables[0])] if isinstance(tables, list) and len(tables) == 1 else []
    words += [] if settings.get("latency", True) else ["--no-latency"]
    words += ["--train"] if settings.get("train") else []
    for name in _REPRODUCE:
        value = settings.get(name)
        if value is not None and value != _DEFAULTS.get(name):
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def claim_command(claim: Mapping[str, Any]) -> str:
    """The command that tries the claim again: as recorded, else by its data, seeds and size."""
    if claim.get("command"):
        return str(claim["command"])
    seeds = claim.get("seeds")
    words = ["bitnas", "reproduce", "shen2019", "--claim", "--data", str(claim.get("data", "digits"))]
    if isinstance(seeds, list) and seeds:
        first = seeds == list(range(len(seeds)))  # without a comma, a number of seeds from 0 on
        words += ["--seeds", str(len(seeds)) if first else ",".join(map(str, seeds)) + "," * (len(seeds) == 1)]
    for name, holder in _CLAIM.items():
        value = claim[holder].get(name)
        words += [f"--{name}", str(value)] if isinstance(value, int) else []
    return shlex.join([*words, "--out", "DIR"])
