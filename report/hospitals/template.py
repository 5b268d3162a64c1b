"""The part of a report's page that says what every hospital gains, as a Jinja template."""

HOSPITALS = """
<h2>What each hospital gains</h2>
<p>{{ who_gains }} {{ how_measured }}</p>
{{ chart("hospitals.svg") }}
<p class="note">In percent, on the hospital's own test questions of its own tasks: the mean over
these tasks. <b>Alone</b>: the hospital trains by itself, on its own data, with the same method and
passes. <b>Federated</b>: with the bank that all hospitals made. <b>Pooled</b>: with the data of all
hospitals in one place, which a federation does without.
{% if has_no_data %}
<b>No data</b>: over the tasks that the hospital has no data of, on the questions of those that have
some; alone it has the base model for them.
{% endif %}
</p>
<div class="wide hospitals"><table>
<thead><tr><th>hospital</th>
{% for head in hospital_heads %}<th>{{ head | wbr }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in hospital_rows %}
<tr{% if row.together %} class="together"{% endif %}>
<th scope="row">{{ row.name | wbr }}<small>{{ row.note }}</small></th>
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<details><summary>Each hospital's own questions, task by task (%)</summary>
<div class="wide"><table>
<thead><tr><th>hospital, task</th>{% for column in task_columns %}<th>{{ column | wbr }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for hospital in hospitals %}
{% for task, scores in hospital.tasks.items() %}
<tr><th scope="row">{{ hospital.site | wbr }}, {{ task | wbr }}</th>
{% for column in task_columns %}<td>{{ scores.get(column) | percent }}</td>{% endfor %}</tr>
{% endfor %}
{% endfor %}
</tbody></table></div></details>
{% if worths %}
<h2>How many pictures of its own that is</h2>
<p>A lone hospital trained on the first of its questions, against what the federation scores with
the same hospital in it.</p>
{{ chart("hospital_curves.svg") }}
<ul>
{% for worth in worths %}<li>{{ worth }}</li>
{% endfor %}
</ul>
{% endif %}
"""
