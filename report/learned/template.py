"""The parts of a report's page with every score's interval, and with scores by site."""

STAGES = """
<h2>What every task scores</h2>
<p>Scores in percent, in the task's own measure, on its own test questions; below each its 95 %
interval, {{ interval_note }}. The majority answer is the commonest training answer to the same
question: what a model can score without looking at the image. Gain is over the better of the base
model and the majority answer; it is shown to be above zero where its interval, widened for the
number of tasks (Bonferroni), excludes zero.</p>
{{ chart("moments.svg") }}
<div class="wide"><table>
<thead><tr><th>task</th>
<th>n<small>questions{% if has_pictures %} (pictures){% endif %}</small></th>
<th>base model</th><th>majority</th><th>when learned</th><th>gain</th><th>at the end</th>
{% if has_routed %}<th>routed</th>{% endif %}</tr></thead>
<tbody>
{% for row in task_scores %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
<td>{{ row.questions if row.questions is not none else "&ndash;" | safe }}
{%- if row.pictures is not none %} ({{ row.pictures }}){% endif %}</td>
<td>{{ row.zero_shot | percent }}</td><td>{{ row.majority | percent }}</td>
<td>{{ row.learned.value | percent }}<small>{{ row.learned | interval }}</small></td>
<td>{{ row.gain.value | points }}<small>{{ row.gain | interval(true) }}</small>
<small>{{ row.verdict | verdict }}</small></td>
<td>{{ row.last.value | percent }}<small>{{ row.last | interval }}</small></td>
{% if has_routed %}
<td>{{ row.routed.value | percent }}<small>{{ row.routed | interval }}</small></td>
{% endif %}</tr>
{% endfor %}
</tbody></table></div>
"""

BY_SITE = """
{% if rows_by_site %}
<h2>Scores by site</h2>
<p>Each site's own test questions, at the end, in percent; below each score its 95 % interval and
the number of questions. With few questions the intervals are wide: sites whose intervals overlap
are not shown to differ.</p>
<div class="wide"><table>
<thead><tr><th>task</th>
{% for head in site_heads %}<th>{{ head | wbr }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows_by_site %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
{% for cell in row.cells %}
{% if cell is none %}<td>&ndash;</td>
{% else %}<td>{{ cell.score.value | percent }}<small>{{ cell.score | interval }}</small>
<small>{% if summed_up %}{{ cell.site | wbr }} {% endif %}
{%- if cell.questions is not none %}n {{ cell.questions }}{% endif %}</small></td>
{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
"""
