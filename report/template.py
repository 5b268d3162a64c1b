"""The page of a report, as a Jinja template.

It is not a `.j2` file since a Flower App Bundle, which brings this package to the server's run,
carries .py, .toml, .md, .yaml and .json only: `fab-include` refuses others (flwr 1.41 and 1.42,
cli/build.py, get_filtered_fab_paths).
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ run.plan.name }}: {{ run.method }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<p>fedmslora · plan {{ run.plan.name }} · method {{ run.method }} · seed {{ run.seed }}
{%- if run.finished %} · {{ run.finished }}{% endif %}</p>
<h1>{{ headline | wbr }}</h1>
<p>{{ opening }}</p>
<p class="device">Research only. This is no medical device, and no figure or answer on this page
may guide the care of a patient.</p>
</header>
<!-- links -->

<dl class="facts">
{% for figure in key_figures %}
<div><dt>{{ figure.name }}</dt><dd>{{ figure.value }}</dd>
<dd class="under">{{ figure.note | wbr }}</dd></div>
{% endfor %}
</dl>

{% if hospitals %}
{% include "hospitals" %}
{% endif %}

{% include "stages" %}
{% include "by_site" %}
{% include "confusion" %}
{% include "examples" %}

<h2>What the model knows after every stage</h2>
<p>{{ reading }}</p>
<div class="wide matrix"><table>
<thead><tr><th></th>
{% for stage in run.stages %}
<th scope="col">{{ stage.name | wbr }}<small>{{ stage.metric | readable }}
{%- if counts[loop.index0] %}, n {{ counts[loop.index0] }}{% endif %}</small></th>
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
{{ chart("memory.svg") }}

{% if routed %}
<h2>When the task is not given</h2>
<p>{{ routing }}. Above, each question comes with its task. Here the router chose a stage for each
question: by the image, by its file's header, and by the question's words where the plan lists
questions for its stages. Known are images that the router finds like a stage's own, the rest are
answered with a warning. Its confidence is calibrated where it is the share that went to the right
stage. Both scores are from after the last stage that was evaluated.</p>
<div class="wide"><table>
<thead><tr><th>task</th><th>task given</th><th>stage routed</th>
<th>images to the right stage</th><th>to the right modality</th>
<th>called known</th><th>confidence</th></tr></thead>
<tbody>
{% for row in routed %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
<td>{{ row.given | percent }}</td><td>{{ row.routed | percent }}</td>
<td>{{ row.right_stage | percent }}</td><td>{{ row.right_modality | percent }}</td>
<td>{{ row.known | percent }}</td><td>{{ row.confidence | percent }}</td></tr>
{% endfor %}
</tbody></table></div>
{{ chart("routed.svg") }}
{% endif %}

{% if run.simulated %}
{% include "heterogeneity" %}
{% endif %}

<h2>How every stage was made</h2>
<div class="wide"><table>
<thead><tr><th>stage</th><th class="left">modality</th><th class="left">sites</th>
<th>aggregation error</th></tr></thead>
<tbody>
{% for row in stages %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
<td class="left">{{ row.stage.modality }}</td>
<td class="list">{{ row.stage.sites | join(", ") }}</td>
<td>{{ row.error | small_percent }}</td></tr>
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
{{ chart("comparison.svg") }}
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
{{ chart("traffic.svg") }}
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
{{ chart("losses.svg") }}
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
