"""Jinja templates of single answers on a report's page: confusion table, and answers shown."""

CONFUSION = """
{% if confusions %}
<h2>Which answer for which</h2>
<p>Closed questions as they were last scored: a row for each true answer, a column for each answer
that was given, and how many questions. What is right is framed.</p>
{% for task, tables in confusions %}
<h3>{{ task | wbr }}</h3>
<div class="tables">
{% for table in tables %}
<div class="wide confusion"><table>
<caption>{{ table.question or "all closed questions" }}</caption>
<thead><tr><th>true \\ answered</th>
{% for name in table.answers %}<th scope="col">{{ name or "(nothing)" }}</th>{% endfor %}
<th scope="col">right</th></tr></thead>
<tbody>
{% for truth in table.truths %}
{% set counts = table.counts[loop.index0] %}
{% set row = loop.index0 %}
<tr><th scope="row">{{ truth or "(nothing)" }}</th>
{% for count in counts %}
{% set back, ink = count | shaded(counts) %}
<td{% if loop.index0 == row %} class="own"{% endif %}
 style="background:{{ back }};color:{{ ink }}">{{ count }}</td>
{% endfor %}
<td>{{ (counts[row] / (counts | sum)) | percent }} %</td></tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
</div>
{% endfor %}
{% endif %}
"""

EXAMPLES = """
{% if examples %}
<h2>Answers with their pictures</h2>
<p><b>This part holds pictures and answers of test data</b>, so this page may only go where they may
go. A few right and wrong answers of each task as it was last scored, spread evenly over the test
file; right is an exact match after normalization. They show what mistakes look like, not how many
there are.</p>
{% for task, shown in examples %}
<h3>{{ task | wbr }}</h3>
<div class="examples">
{% for one in shown %}
<div class="example {{ 'right' if one.right else 'wrong' }}">
<img alt="test picture, {{ one.site }}" src="data:image/jpeg;base64,{{ one.jpeg }}">
<div><p class="asked">{{ one.question }}</p>
<p><span class="mark">{{ "right" if one.right else "wrong" }}</span> {{ one.answer or "(nothing)" }}
{%- if not one.right %}<br><span class="truth">true: {{ one.truth }}</span>{% endif %}</p>
<p class="site">{{ one.site }}</p></div></div>
{% endfor %}
</div>
{% endfor %}
{% endif %}
"""
