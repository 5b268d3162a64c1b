"""The parts of a report's page on hospitals that differ, as a Jinja template."""

HETEROGENEITY = """
{% if unseen_rows %}
<h2>At hospitals that trained nothing</h2>
<p>{{ unseen_headline }} They only get the bank, and are asked their own test questions. Base model
→ whole bank after the last stage; at the sites that trained, the score after the last stage on
their own test questions. All in percent, in the task's own measure.</p>
<div class="wide"><table>
<thead><tr><th>task</th>
{% for name in unseen_names %}<th>{{ name | wbr }}<small>trained nothing</small></th>{% endfor %}
{% for name in seen_names %}<th>{{ name | wbr }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in unseen_rows %}
<tr><th scope="row">{{ row.stage.name | wbr }}<small>{{ row.stage.metric | readable }}</small></th>
{% for cell in row.unseen %}
<td>{{ cell.zero_shot | percent }} → {{ cell.last | percent }}
<small>{{ cell.questions }} questions</small></td>
{% endfor %}
{% for cell in row.seen %}
<td>{{ cell.last | percent }}{% if cell.questions %}<small>{{ cell.questions }} questions</small>
{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if simulated %}
<h2>How the simulated hospitals differ</h2>
<p>Drawn from the plan's seed and each hospital's name. A scanner is the same for all of a
hospital's training and test pictures: gamma above 1 darkens, noise is the grain's standard
deviation and blur that of the optics, in percent of black to white and of the picture's width;
gains of red, green and blue; and how many pixels become one along each axis.</p>
<div class="wide"><table>
<thead><tr><th>hospital</th>
{% for name in scanner_heads %}<th>{{ name }}</th>{% endfor %}
<th>training questions</th><th>with a wrong answer</th><th>test questions</th></tr></thead>
<tbody>
{% for row in simulated %}
<tr><th scope="row">{{ row.name | wbr }}{% if row.unseen %}<small>trained nothing</small>
{% endif %}</th>
{% for cell in row.scanner %}<td>{{ cell }}</td>{% endfor %}
<td>{{ row.train }}</td><td>{{ row.wrong }}</td><td>{{ row.test }}</td></tr>
{% endfor %}
</tbody></table></div>
<details><summary>The answers of each hospital's questions, task by task</summary>
<div class="wide"><table>
<thead><tr><th>task</th>
{% for row in simulated %}<th>{{ row.name | wbr }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in answers %}
<tr><th scope="row">{{ row.task | wbr }}</th>
{% for cell in row.cells %}<td class="list">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}
"""
