"""The style sheet of the page. Blue and orange are told apart by colour-blind eyes too, and shapes say it again."""

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #dde1e6; --box: #f5f7f9;
  --searched: #0067a8; --uniform: #b84a00; --float: #6b7480; --faint: #9aa3ad; --front: #3f8fc4; --slow: #b0005a;
  --packed: #0067a8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8eaed; --soft: #a3acb8; --line: #333a43;
  --box: #1d2228;
  --searched: #63bdf2; --uniform: #f2a14a; --float: #98a2ae; --faint: #737d89; --front: #3f8fc4; --slow: #ff79b8;
  --packed: #63bdf2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 860px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .3rem 0 .2rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .5rem 0; }
.kicker, .note, figcaption, footer { color: var(--soft); }
.kicker { margin: 0; overflow-wrap: anywhere; }
.headline { font-size: 1.15rem; padding: .9rem 1.1rem; margin: 1rem 0; background: var(--box);
  border-left: 4px solid var(--searched); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .6rem; margin: 1rem 0;
  padding: 0; }
.facts div { background: var(--box); padding: .6rem .8rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; }
figcaption { margin-top: .4rem; }
svg { display: block; max-width: 100%; height: auto; }
svg.narrow { display: none; }
@media (max-width: 856px) { svg.wide { display: none; } svg.narrow { display: block; margin: 0 auto; } }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  fill: var(--ink); }
svg .tick, svg .axis { fill: var(--soft); } svg .name { font-weight: 600; }
svg line, svg polyline { fill: none; stroke: var(--line); stroke-width: 1; }
svg .base { stroke: var(--faint); } svg .leader { stroke: var(--faint); }
svg .frontline { stroke: var(--front); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .misleading { stroke: var(--slow); stroke-width: 1.5; stroke-dasharray: 3 3; }
svg .bar { stroke-width: 2; }
svg path { stroke: var(--paper); stroke-width: 1; }
svg path.candidate { fill: var(--faint); fill-opacity: .55; stroke: none; }
svg path.front { fill: var(--paper); stroke: var(--front); stroke-width: 2; }
svg path.searched { fill: var(--searched); } svg path.uniform { fill: var(--uniform); }
svg path.packed { fill: var(--packed); } svg path.slow { fill: var(--slow); }
svg path.float { fill: var(--paper); stroke: var(--float); stroke-width: 2; }
svg path.cross { fill: none; stroke: var(--slow); stroke-width: 2.5; }
svg rect.searched { fill: var(--searched); } svg rect.uniform { fill: var(--uniform); }
svg .bar.searched { stroke: var(--searched); } svg .bar.uniform { stroke: var(--uniform); }
svg .bar.packed { stroke: var(--packed); } svg .bar.slow { stroke: var(--slow); }
svg text.searched { fill: var(--searched); } svg text.uniform { fill: var(--uniform); }
  svg text.slow { fill: var(--slow); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td small { color: var(--soft); font-weight: 400; display: block; }
th.text { text-align: left; }
td.text { text-align: left; white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
tr.searched td:first-child { color: var(--searched); font-weight: 600; }
  tr.uniform td:first-child { color: var(--uniform); font-weight: 600; }
ul { padding-left: 1.2rem; }
pre { background: var(--box); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
summary { cursor: pointer; }
"""
