"""The part of a report's page that compares methods, as a Jinja template."""

METHODS = """
{{ chart("methods.svg") }}
<div class="wide"><table>
<thead><tr><th>{{ summaries[0].seeds | length }} seed
{%- if summaries[0].seeds | length > 1 %}s: mean ± sd{% endif %}</th>
{% for name in shown %}<th>{{ name | readable }}</th>{% endfor %}</tr></thead>
<tbody>
{% for kind, number in kinds_of_tasks.items() %}
<tr class="part"><th colspan="{{ shown | length + 1 }}">{{ kind | readable }} ({{ number }} task
{%- if number > 1 %}s{% endif %}), percent and points</th></tr>
{% for row in summaries %}
<tr><th scope="row">{{ row.method | wbr }}</th>
{% for name in shown %}
{% if name in levels %}
<td>{{ row.metrics[kind][name] | spread }}</td>
{% else %}
<td>{{ row.metrics[kind][name] | signed_spread }}</td>
{% endif %}
{% endfor %}</tr>
{% endfor %}
{% endfor %}
</tbody></table></div>

{% if comparison_rows %}
<h2>{{ run.method | wbr }} against each other method</h2>
<p>Differences in points, {{ run.method | wbr }} minus the other method: above zero it is
better (for forgetting: below zero). Under each, p adjusted for all methods of the column (Holm);
bold where it is below 0.05. Answers of all tasks together: McNemar's exact test. Scores of one
measure: a bootstrap of the questions within every task and seed, with its 95 % interval. Over
seeds: Student's paired t test. Where all seeds ask the same questions (with <code>--data</code>),
each question counts once with its mean over the seeds, and McNemar's test is left out.</p>
<div class="wide"><table>
<thead><tr><th>against</th>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in comparison_rows %}
{% if loop.first or loop.previtem.measure != row.measure %}
<tr class="part"><th colspan="{{ heads | length + 1 }}">{{ row.measure | readable }}
{%- if row.measure == "exact_match" %} of all answers{% endif %}</th></tr>
{% endif %}
<tr><th scope="row">{{ row.method | wbr }}</th>
{% for test in row.cells %}
{% if test is none %}
<td>&ndash;</td>
{% else %}
<td>{% if test.p_holm < 0.05 %}<b>{{ test.difference | points }}</b>
{%- else %}{{ test.difference | points }}{% endif %}
{%- if test.low is not none %} [{{ test.low | points }}, {{ test.high | points }}]{% endif %}
<small>p {{ test.p_holm | p_value }}</small></td>
{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<details><summary>Every test, with what was counted</summary>
<div class="wide"><table>
<thead><tr><th>against</th><th class="left">score</th><th class="left">measure</th>
<th class="left">test</th><th>difference</th><th>pairs</th><th>detail</th><th>p</th>
<th>p (Holm)</th></tr></thead>
<tbody>
{% for test in tests %}
<tr><th scope="row">{{ test.method | wbr }}</th><td class="left">{{ test.score | readable }}</td>
<td class="left">{{ test.measure | readable }}</td><td class="left">{{ test.test }}</td>
<td>{{ test.difference | points }}</td><td>{{ test.pairs }}</td>
<td>{% if test.own_only is not none %}only one right: {{ test.own_only }} : {{ test.other_only }}
{%- elif test.low is not none %}{{ test.low | points }} to {{ test.high | points }}
{%- elif test.deviation is not none %}sd {{ test.deviation | percent }}{% endif %}</td>
<td>{{ test.p | p_value }}</td><td>{{ test.p_holm | p_value }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}

<h2>What each method costs</h2>
<p>The cost of one run, a mean over seeds; for memory the largest. Training time is summed over
sites; the whole run includes the evaluation.</p>
<div class="wide"><table>
<thead><tr><th>method</th><th>steps</th><th>training</th><th>whole run</th><th>sent by sites</th>
<th>received</th><th>peak memory</th></tr></thead>
<tbody>
{% for row in summaries %}
<tr><th scope="row">{{ row.method | wbr }}</th>
<td>{{ row.cost.steps | whole }}</td>
<td>{{ row.cost.training_seconds | duration }}</td><td>{{ row.cost.seconds | duration }}</td>
<td>{{ row.cost.bytes_up | size }}</td><td>{{ row.cost.bytes_down | size }}</td>
<td>{{ row.cost.peak_memory_bytes | size }}</td></tr>
{% endfor %}
</tbody></table></div>
"""
