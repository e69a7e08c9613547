"""The style sheet of the page. Blue and orange are told apart by colour-blind eyes too, and shapes say it again.

Below 640 px every row of a table becomes a card of named lines; in print the wide figures are used and nothing scrolls.
"""

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #dde1e6; --box: #f5f7f9;
  --searched: #0067a8; --uniform: #b84a00; --float: #6b7480; --faint: #9aa3ad; --front: #3f8fc4; --slow: #b0005a;
  --packed: #0067a8; --band: #0067a81f; --op1: #1b7a4b; --op2: #b0005a; --op3: #6a4bbc; --op4: #00798a; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8eaed; --soft: #a3acb8;
  --line: #333a43; --box: #1d2228;
  --searched: #63bdf2; --uniform: #f2a14a; --float: #98a2ae; --faint: #737d89; --front: #3f8fc4; --slow: #ff79b8;
  --packed: #63bdf2; --band: #63bdf22b; --op1: #7fce9b; --op2: #ff79b8; --op3: #b7a1f7; --op4: #5fd3dd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 860px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .3rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .3rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.kicker, .note, figcaption, footer { color: var(--soft); }
.note { font-size: .92rem; }
.kicker { margin: 0; }
.headline { font-size: 1.15rem; padding: .9rem 1.1rem; margin: 1rem 0; background: var(--box);
  border-left: 4px solid var(--searched); }
.warning { padding: .6rem .9rem; background: var(--box); border-left: 4px solid var(--slow); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .6rem; margin: 1rem 0;
  padding: 0; }
.facts div { background: var(--box); padding: .6rem .8rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; }
figcaption { margin-top: .4rem; overflow-wrap: anywhere; }
svg { display: block; max-width: 100%; height: auto; }
svg.narrow { display: none; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  fill: var(--ink); }
svg .tick, svg .axis { fill: var(--soft); } svg .name { font-weight: 600; }
svg line, svg polyline { fill: none; stroke: var(--line); stroke-width: 1; }
svg .base { stroke: var(--faint); } svg .leader { stroke: var(--faint); } svg .zero { stroke: var(--ink); }
svg .diagonal { stroke: var(--searched); stroke-width: 1.2; }
svg polygon.band, svg path.band { fill: var(--band); stroke: none; }
svg .frontline { stroke: var(--front); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .uniformline { stroke: var(--uniform); stroke-width: 1.2; stroke-opacity: .6; }
svg .misleading { stroke: var(--slow); stroke-width: 1.5; stroke-dasharray: 3 3; }
svg .bar { stroke-width: 2; } svg .bar.front { stroke: var(--front); stroke-width: 1.2; stroke-opacity: .6; }
svg polyline.curve { stroke-width: 2; } svg polyline.curve.searched { stroke: var(--searched); }
  svg polyline.curve.uniform { stroke: var(--uniform); } svg polyline.curve.float { stroke: var(--float); }
svg polyline.leader { stroke: var(--faint); } svg rect.stem, svg path.stem { fill: var(--float); fill-opacity: .6; }
svg polyline.floatline { stroke: var(--float); stroke-width: 1.2; stroke-dasharray: 3 3; }
svg .bar.rejected { stroke: var(--faint); }
svg .bar.float { stroke: var(--float); } svg text.float { fill: var(--float); }
svg path { stroke: var(--paper); stroke-width: 1; }
svg path.candidate { fill: var(--faint); fill-opacity: .55; stroke: none; }
svg path.front { fill: var(--paper); stroke: var(--front); stroke-width: 2; }
svg path.searched { fill: var(--searched); } svg path.uniform { fill: var(--uniform); }
svg path.pale { fill-opacity: .7; }
svg path.packed { fill: var(--packed); } svg path.slow { fill: var(--slow); }
svg path.overall { fill: var(--ink); } svg .bar.overall { stroke: var(--ink); }
svg path.byops { fill: none; stroke: var(--uniform); stroke-width: 2; }
svg path.rejected { fill: none; stroke: var(--faint); stroke-width: 1.5; }
svg path.float { fill: var(--paper); stroke: var(--float); stroke-width: 2; }
svg path.cross { fill: none; stroke: var(--slow); stroke-width: 2.5; }
svg rect.searched { fill: var(--searched); } svg rect.uniform { fill: var(--uniform); }
svg .bar.searched { stroke: var(--searched); } svg .bar.uniform { stroke: var(--uniform); }
svg .bar.packed { stroke: var(--packed); } svg .bar.slow { stroke: var(--slow); }
svg text.searched { fill: var(--searched); } svg text.uniform { fill: var(--uniform); }
  svg text.slow { fill: var(--slow); }
svg polyline.age { stroke: var(--searched); stroke-width: 1.6; }
svg path.age0, svg path.age1, svg path.age2, svg path.age3, svg path.age4, svg path.age5 { fill: var(--searched); }
svg polyline.age0 { stroke-width: 2.6; }
svg .age1 { opacity: .62; } svg .age2 { opacity: .48; } svg .age3 { opacity: .38; } svg .age4 { opacity: .3; }
  svg .age5 { opacity: .24; }
svg .op-0 { --op: var(--searched); } svg .op-1 { --op: var(--op1); } svg .op-2 { --op: var(--op2); }
  svg .op-3 { --op: var(--op3); } svg .op-4 { --op: var(--op4); }
  svg .op-skip { --op: var(--uniform); } svg .op-none { --op: var(--line); }
svg path.edge { fill: none; stroke: var(--op); stroke-width: 2; }
svg polygon.head, svg polygon.area, svg path.op { fill: var(--op); stroke: none; } svg text.op { fill: var(--op); }
svg polygon.area { fill-opacity: .85; } svg path.op-none { fill: var(--line); }
svg path.edge.plain { stroke: var(--faint); stroke-width: 1.4; } svg polygon.head.plain { fill: var(--faint); }
svg path.edge.shortcut { stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 6 4; }
  svg polygon.head.shortcut { fill: var(--ink); }
svg polyline.shortcutline { stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 6 4; }
svg text.chip { font-size: 11.5px; font-weight: 600; } svg rect.chip { fill: var(--paper); }
svg path.node { fill: var(--paper); stroke: var(--ink); stroke-width: 1.6; }
  svg path.node.dead { stroke: var(--faint); stroke-dasharray: 3 3; } svg text.dead { fill: var(--faint); }
svg rect.port { fill: var(--box); stroke: var(--soft); stroke-width: 1; }
svg rect.left { fill: none; stroke: var(--faint); stroke-width: 1.4; stroke-dasharray: 4 3; }
svg .level { --op: var(--searched); } svg polygon.level0, svg path.level0 { fill-opacity: .15; }
  svg polygon.level1, svg path.level1 { fill-opacity: .38; } svg polygon.level2, svg path.level2 { fill-opacity: .62; }
  svg polygon.level3, svg path.level3 { fill-opacity: .9; }
svg .phase { stroke: var(--faint); stroke-width: 1.2; stroke-dasharray: 2 3; }
svg .uniform, svg .searched, svg .float { --op: var(--searched); } svg .uniform { --op: var(--uniform); }
  svg .float { --op: var(--float); }
svg polyline.methodline { stroke: var(--op); stroke-width: 1.6; stroke-dasharray: 5 3; }
svg .bar.thin { stroke: var(--op); stroke-width: 1.2; stroke-opacity: .55; }
svg polyline.curve.op { stroke: var(--op); } svg polyline.curve.slow { stroke: var(--slow); }
svg .budget { stroke: var(--slow); stroke-width: 1.5; stroke-dasharray: 6 4; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td small { color: var(--soft); font-weight: 400; display: block; white-space: normal; }
td.differs, td.differs small, td.truncated small { color: var(--slow); }
th.text { text-align: left; }
td.text { text-align: left; white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
tr.searched td:first-child { color: var(--searched); font-weight: 600; }
  tr.uniform td:first-child { color: var(--uniform); font-weight: 600; }
tr.finding td:first-child { font-weight: 600; }
ul, ol { padding-left: 1.3rem; overflow-wrap: anywhere; }
pre { background: var(--box); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
code { font-size: .92em; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media screen and (max-width: 856px) { svg.wide { display: none; } svg.narrow { display: block; margin: 0 auto; } }
@media screen and (max-width: 640px) {
  .facts { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); }
  thead { display: none; }
  table, tbody { display: block; }
  tr { display: block; padding: .5rem .7rem; margin: 0 0 .7rem; background: var(--box); }
  th, td, td.text { display: flex; justify-content: space-between; gap: 1rem; padding: .2rem 0; border: 0;
    white-space: normal; min-width: 0; text-align: right; overflow-wrap: anywhere; }
  td:first-child { position: static; background: none; }
  td.none { display: none; }
  td::before { content: attr(data-name); color: var(--soft); font-weight: 400; text-align: left; flex: none;
    max-width: 45%; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2 { margin-top: 1.6rem; break-after: avoid; } h3 { break-after: avoid; }
  figure, tr, .headline { break-inside: avoid; } svg.wide { max-height: 11cm; width: auto; }
  .scroll { overflow: visible; } table { font-size: .72rem; } th, td { padding: .2rem .3rem; white-space: normal; }
  td.text { min-width: 0; } pre { white-space: pre-wrap; }
}
"""
