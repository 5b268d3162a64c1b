"""The page of a report, as a Jinja template.

It is not a `.j2` file since a Flower App Bundle, which brings this package to the server's run,
carries .py, .toml, .md, .yaml and .json only: `fab-include` refuses others (flwr 1.42 and 1.42,
cli/build.py, get_filtered_fab_paths).
"""

STYLE = """
:root {
  --ink: #1b1f24; --muted: #5b6673; --line: #e1e6eb; --soft: #f5f7f9; --blue: #0b5087;
}
* { box-sizing: border-box; }
body {
  margin: 0; background: #fcfcfb; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
header p { margin: 0; color: var(--muted); }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0.3rem 0 0.6rem;
  letter-spacing: -0.015em; text-wrap: balance; overflow-wrap: break-word; }
h2 { font-size: 1.2rem; margin: 3.2rem 0 0.3rem; letter-spacing: -0.01em; }
p { max-width: 42rem; margin: 0.4rem 0 1rem; }
.note { color: var(--muted); font-size: 0.92rem; }
.facts { display: grid; gap: 0.75rem; margin: 1.75rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(10.2rem, 1fr)); }
.facts div { background: #fff; border: 1px solid var(--line); border-radius: 0.6rem;
  padding: 0.8rem 1rem; }
.facts dt { color: var(--muted); font-size: 0.85rem; }
.facts dd { margin: 0; font-size: 1.5rem; font-weight: 600; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }
.facts dd.under { font-size: 0.85rem; font-weight: 400; color: var(--muted); letter-spacing: 0;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: 0.42rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: baseline; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.82rem; vertical-align: bottom;
  border-bottom-color: #c3ccd5; white-space: normal; }
th:first-child, td:first-child, .left { text-align: left; }
tbody th { font-weight: 500; min-width: 8.5rem; max-width: 16rem; white-space: normal;
  overflow-wrap: break-word; }
.list { white-space: normal; min-width: 7rem; text-align: left; }
td small, th small { display: block; color: var(--muted); font-weight: 400; font-size: 0.78rem; }
tr.together th, tr.together td { border-top: 1px solid #c3ccd5; font-weight: 600; }
tr.part th { padding-top: 1.1rem; color: var(--muted); font-size: 0.82rem; }
.matrix table { border-collapse: separate; border-spacing: 3px; }
.matrix th, .matrix td { border: 0; }
.matrix th, .matrix td { padding: 0.42rem 0.4rem; }
.matrix td { text-align: center; border-radius: 0.25rem; min-width: 3.4rem;
  vertical-align: middle; }
.matrix thead th { text-align: center; min-width: 4.6rem; max-width: 8rem;
  overflow-wrap: break-word; }
.matrix tbody th { min-width: 7rem; max-width: 13rem; vertical-align: middle; }
.matrix td.own { box-shadow: inset 0 0 0 2px var(--ink); }
.matrix tr.base td, .matrix tr.base th { padding-bottom: 0.42rem; }
.matrix td.none { color: #98a2ad; }
figure { margin: 1rem 0 0; overflow-x: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 0.6rem; padding: 0.9rem; }
figure img { display: block; width: 100%; min-width: 34rem; height: auto; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--blue); }
dl.made { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: 0.3rem 1.2rem;
  font-size: 0.9rem; }
dl.made dt { color: var(--muted); }
dl.made dd { margin: 0; overflow-wrap: anywhere; }
code { font: 0.86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ run.plan.name }}: {{ run.method }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<p>fedmslora · plan {{ run.plan.name }} · method {{ run.method }} · seed {{ run.seed }}</p>
<h1>{{ headline | wbr }}</h1>
<p>{{ opening }}</p>
</header>

<dl class="facts">
{% for figure in key_figures %}
<div><dt>{{ figure.name }}</dt><dd>{{ figure.value }}</dd>
<dd class="under">{{ figure.note | wbr }}</dd></div>
{% endfor %}
</dl>

{% if hospitals %}
{% include "hospitals" %}
{% endif %}

<h2>What the model knows after every stage</h2>
<p>{{ reading }}</p>
<div class="wide matrix"><table>
<thead><tr><th></th>
{% for stage in run.stages %}
<th scope="col">{{ stage.name | wbr }}<small>{{ stage.metric | readable }}</small></th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in matrix %}
<tr{% if loop.first %} class="base"{% endif %}><th scope="row">{{ row.name | wbr }}</th>
{% for cell in row.cells %}
{% if cell.score is none %}
<td class="none">·</td>
{% else %}
<td{% if cell.own %} class="own"{% endif %} style="background:{{ cell.back }};color:{{ cell.ink }}">
{{- cell.score | percent -}}
</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{{ chart("memory.png") }}

{% if routed %}
<h2>When the task is not given</h2>
<p>{{ routing }}. Above, each question comes with its task. Here the router chose a stage for each
test image: the one whose mean image feature is nearest to the image's. Both scores are from after
the last stage that was evaluated.</p>
<div class="wide"><table>
<thead><tr><th>task</th><th>task given</th><th>stage routed</th>
<th>images to the right stage</th><th>to the right modality</th></tr></thead>
<tbody>
{% for row in routed %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
<td>{{ row.given | percent }}</td><td>{{ row.routed | percent }}</td>
<td>{{ row.right_stage | percent }}</td><td>{{ row.right_modality | percent }}</td></tr>
{% endfor %}
</tbody></table></div>
{{ chart("routed.png") }}
{% endif %}

{% if run.simulated %}
{% include "heterogeneity" %}
{% endif %}

<h2>What every stage added</h2>
<p>Scores in percent, in the stage's own measure, on its own test questions. The majority answer
is the commonest training answer to the same question: what a model can score without looking at
the image. Gain is over the better of zero-shot and majority.</p>
<div class="wide"><table>
<thead><tr><th>stage</th><th class="left">modality</th><th class="left">sites</th>
<th>zero-shot</th><th>majority</th><th>when learned</th><th>gain</th><th>at the end</th>
<th>aggregation error</th></tr></thead>
<tbody>
{% for row in stages %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
<td class="left">{{ row.stage.modality }}</td>
<td class="list">{{ row.stage.sites | join(", ") }}</td>
<td>{{ row.zero_shot | percent }}</td><td>{{ row.majority | percent }}</td>
<td>{{ row.learned | percent }}</td><td>{{ row.gain | points }}</td>
<td>{{ row.last | percent }}</td><td>{{ row.error | small_percent }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">Aggregation error: how far the released adapter is from the sites' mean update
(relative Frobenius norm), in percent; 0 where the rule is exact.</p>
<details><summary>All measures of every task, right after its own stage (%)</summary>
<div class="wide"><table>
<thead><tr><th>stage</th>
{% for name in measures %}<th>{{ name | readable }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in stages %}
<tr><th scope="row">{{ row.stage.name | wbr }}</th>
{% for name in measures %}<td>{{ row.measured.get(name) | percent }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div></details>

<h2>Over the whole run</h2>
<p>Averages are over the tasks with the same measure, in percent and points. A dash: a score that
it needs was not evaluated.</p>
<div class="wide"><table>
<thead><tr><th>measure (tasks)</th>
{% for name in metric_names %}<th>{{ name | readable }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in kinds %}
<tr><th scope="row">{{ row.kind | readable }} ({{ row.tasks }})</th>
{% for value in row.averages %}<td>{{ value | percent }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<details><summary>What these metrics mean</summary>
<p class="note"><b>last</b>: mean score after the last stage. <b>aia</b>: mean over the stages of
the mean score on what was learned so far. <b>bwt</b>, backward transfer: score at the end minus
the score when learned. <b>forgetting</b>: best earlier score minus the score at the end.
<b>fwt</b>, forward transfer: score just before a task is learned minus the base model's.
<b>learning gain</b>: score when learned minus that of a model trained on the task alone.
<b>transfer</b>: mean score on tasks not yet learned. <b>avg</b>: mean of the whole matrix.</p>
</details>

<h2>{{ "Comparison of methods" if methods | length > 1 else "Against the baselines" }}</h2>
{{ chart("comparison.png") }}
{% if methods | length > 1 or methods[0].seeds | length > 1 %}
<div class="wide"><table>
<thead><tr><th>% when learned → at the end</th>
{% for method in methods %}
<th>{{ method.method }}<small>{{ method.seeds | length }} seed
{%- if method.seeds | length > 1 %}s, mean ± sd{% endif %}</small></th>
{% endfor %}</tr></thead>
<tbody>
{% for row in comparison %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
{% for cell in row.cells %}
<td>{{ cell.learned | spread }} → {{ cell.last | spread }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% include "methods" %}
{% endif %}

{% include "classes" %}
{% include "options" %}
{% include "sites" %}
<h2>What each site sent</h2>
<p>{{ sent }}</p>
{{ chart("traffic.png") }}
<div class="wide"><table>
<thead><tr><th>site</th><th class="left">stages</th><th>updates</th><th>sent</th>
<th>received</th><th>largest update</th></tr></thead>
<tbody>
{% for row in sites %}
<tr><th scope="row">{{ row.site }}</th><td class="list">{{ row.stages | wbr }}</td>
<td>{{ row.updates }}</td><td>{{ row.up | size }}</td><td>{{ row.down | size }}</td>
<td>{{ row.largest | size }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2>Training</h2>
{{ chart("losses.png") }}
<p class="note">{{ cost }}</p>

{% if not_drawn %}
<h2>What could not be drawn</h2>
{% for text in not_drawn %}<p class="note">{{ text }}</p>
{% endfor %}
{% endif %}

<h2>Provenance</h2>
<dl class="made">
{% for name, value in provenance %}<dt>{{ name }}</dt><dd><code>{{ value }}</code></dd>
{% endfor %}
</dl>
</main>
</body>
</html>
"""
