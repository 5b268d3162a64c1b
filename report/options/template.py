"""The part of a report's page on closed questions among their options, as a Jinja template."""

OPTIONS = """
{% if option_rows %}
<h2>Closed questions among their options</h2>
<p>A model that was trained on other tasks may answer in their words, and is then wrong whatever it
knows. Among its options a closed question is answered by the likeliest one, so that only knowledge
counts. Means over the tasks that have such questions, in percent: when learned and at the end.</p>
<div class="wide"><table>
<thead><tr><th>method (tasks)</th><th>free answers</th><th>lost</th><th>among options</th>
<th>lost</th><th>free answers that are an option, at the end</th></tr></thead>
<tbody>
{% for row in option_rows %}
<tr><th scope="row">{{ row.method | wbr }} ({{ row.tasks }})</th>
<td>{{ row.free_learned | spread }} → {{ row.free_last | spread }}</td>
<td>{{ row.lost | points }}</td>
<td>{{ row.among_learned | spread }} → {{ row.among_last | spread }}</td>
<td>{{ row.lost_among | points }}</td><td>{{ row.listed_last | spread }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
"""
