"""The part of a report's page on each site's part, as a Jinja template."""

SITES = """
{% if site_rows %}
<h2>Each site's part</h2>
<p><b>Self-reported</b>: examples, questions and scores are each site's own word, as are losses,
training time and memory everywhere on this page; nobody else can check them. How far a site counts
is bounded by the plan. Share, norm and cosine are the coordinator's own measure of the stage's last
round: of the change that the site's update makes, and of the angle to the other sites' changes.</p>
<div class="wide"><table>
<thead><tr><th>stage</th><th class="left">site</th><th>examples<small>self-reported</small></th>
<th>questions<small>self-reported</small></th>
<th>score<small>self-reported, when learned</small></th>
<th>share</th><th>norm of change</th><th>cosine to others</th><th>rounds scaled down</th>
<th>rounds left out</th></tr></thead>
<tbody>
{% for row in site_rows %}
<tr><th scope="row">{{ row.stage | wbr }}</th><td class="left">{{ row.site }}</td>
<td>{{ row.examples }}</td><td>{{ row.questions }}</td><td>{{ row.score | percent }}</td>
<td>{{ row.share | percent }}</td><td>{{ row.norm | short }}</td><td>{{ row.cosine | short }}</td>
<td>{{ row.scaled }}</td><td>{{ row.left_out }}
{% if row.why %}<small>{{ row.why }}</small>{% endif %}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
"""
