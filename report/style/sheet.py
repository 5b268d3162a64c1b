"""The style sheet of our pages: light and dark, on paper, and on a phone."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fcfcfb; --card: #fff; --ink: #1b1f24; --muted: #5b6673; --line: #e1e6eb;
  --strong: #c3ccd5; --blue: #0b5087; --good: #00694d; --bad: #a84300; --faint: #7d8894;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2026; --ink: #e6e9ec; --muted: #a3adb8; --line: #2d343c;
    --strong: #46505b; --blue: #7db9e8; --good: #5fcaa6; --bad: #f0955a; --faint: #7d8894;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
header p { margin: 0 0 0.5rem; color: var(--muted); max-width: 46rem; }
header p.device { font-size: 0.92rem; border-left: 3px solid var(--bad); padding-left: 0.7rem; }
h1 { font-size: clamp(1.3rem, 3.2vw, 1.9rem); line-height: 1.25; margin: 0.3rem 0 0.7rem;
  letter-spacing: -0.015em; text-wrap: balance; overflow-wrap: break-word; }
h2 { font-size: 1.2rem; margin: 3.2rem 0 0.3rem; letter-spacing: -0.01em; scroll-margin-top: 1rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.3rem; }
p { max-width: 46rem; margin: 0.4rem 0 1rem; }
a { color: var(--blue); }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin: 1.25rem 0 0; font-size: 0.9rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.note { color: var(--muted); font-size: 0.92rem; }
.facts { display: grid; gap: 0.75rem; margin: 1.5rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem;
  padding: 0.8rem 1rem; }
.facts dt { color: var(--muted); font-size: 0.85rem; }
.facts dd { margin: 0; font-size: 1.5rem; font-weight: 600; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }
.facts dd.under { font-size: 0.85rem; font-weight: 400; color: var(--muted); letter-spacing: 0;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: 0.42rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: baseline; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.82rem; vertical-align: bottom;
  border-bottom-color: var(--strong); white-space: normal; }
th:first-child, td:first-child, .left { text-align: left; }
tbody th { font-weight: 500; min-width: 7rem; max-width: 16rem; white-space: normal;
  overflow-wrap: break-word; }
.list { white-space: normal; min-width: 7rem; text-align: left; }
td small, th small { display: block; color: var(--muted); font-weight: 400; font-size: 0.78rem; }
tr.together th, tr.together td { border-top: 1px solid var(--strong); font-weight: 600; }
tr.part th { padding-top: 1.1rem; color: var(--muted); font-size: 0.82rem; }
.hospitals td { white-space: normal; min-width: 3.6rem; padding: 0.42rem 0.4rem; }
.hospitals thead th { padding: 0.42rem 0.4rem; overflow-wrap: break-word; }
.matrix table { border-collapse: separate; border-spacing: 3px; }
.matrix th, .matrix td { border: 0; padding: 0.42rem 0.4rem; }
.matrix td { text-align: center; border-radius: 0.25rem; min-width: 3.4rem;
  vertical-align: middle; }
.matrix thead th { text-align: center; min-width: 4.6rem; max-width: 8rem;
  overflow-wrap: break-word; }
.matrix tbody th { min-width: 7rem; max-width: 13rem; vertical-align: middle; }
td.own { box-shadow: inset 0 0 0 2px var(--ink); }
@media screen and (prefers-color-scheme: dark) { td.own { box-shadow: inset 0 0 0 2px #f0955a; } }
.matrix td.none { color: var(--faint); }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.confusion { max-width: 100%; }
.confusion table { min-width: 0; border-collapse: separate; border-spacing: 2px; }
.confusion caption { text-align: left; padding: 0 0 0.3rem; font-size: 0.9rem; }
.confusion th, .confusion td { border: 0; padding: 0.3rem 0.55rem; }
.confusion tbody th { min-width: 3rem; }
.confusion thead th { min-width: 3rem; max-width: 9rem; overflow-wrap: break-word; }
.confusion td { text-align: center; border-radius: 0.2rem; }
.confusion td:last-child { color: var(--muted); text-align: right; }
.examples { display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); }
.example { display: flex; gap: 0.75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 0.6rem; padding: 0.6rem; break-inside: avoid; }
.example img { width: 6rem; height: 6rem; object-fit: contain; background: #000;
  border-radius: 0.3rem; flex: none; image-rendering: auto; }
.example p { margin: 0 0 0.25rem; font-size: 0.9rem; line-height: 1.35; overflow-wrap: anywhere; }
.example .site, .example .truth { color: var(--muted); font-size: 0.82rem; }
.mark { font-size: 0.75rem; font-weight: 600; border: 1px solid; border-radius: 0.3rem;
  padding: 0 0.3rem; }
.right .mark { color: var(--good); }
.wrong .mark { color: var(--bad); }
figure { margin: 1rem 0 0; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 0.6rem; padding: 0.9rem; }
figure svg { display: block; width: 100%; min-width: 30rem; height: auto; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--blue); }
dl.made { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: 0.3rem 1.2rem;
  font-size: 0.9rem; }
dl.made dt { color: var(--muted); }
dl.made dd { margin: 0; overflow-wrap: anywhere; }
code { font: 0.86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 40rem) {
  main { padding: 1.25rem 0.9rem 3rem; }
  .facts { grid-template-columns: 1fr 1fr; }
  .facts dd { font-size: 1.2rem; }
  .facts dd.under { font-size: 0.78rem; }
  th, td { padding: 0.36rem 0.45rem; }
  tbody th { min-width: 5.5rem; }
  .wide > table > tbody > tr > th:first-child { position: sticky; left: 0;
    background: var(--page); }
  dl.made { grid-template-columns: 1fr; gap: 0; }
  dl.made dd { margin-bottom: 0.5rem; }
}
@media print {
  body { font-size: 10pt; background: none; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  figure, tr, .confusion, .facts div { break-inside: avoid; }
  figure svg, figure { min-width: 0; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 0.2rem 0.3rem; }
  td, .matrix td { white-space: normal; min-width: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
