"""The part of a report's page on tasks with classes, as a Jinja template."""

CLASSES = """
{% if class_rows %}
<h2>Tasks with classes</h2>
<p>In percent: the model, in brackets the base model asked among the same classes, and the commonest
training answer. Balanced accuracy is the mean recall of the classes. The AUC is the mean over the
classes of one against the rest. It is each site's own, and the figure over all sites is their mean,
weighted by questions; it is not the AUC of all sites' questions together, which would also compare
scores between sites.</p>
<div class="wide"><table>
<thead><tr><th>task, at the end</th><th>accuracy</th><th>balanced accuracy</th>
<th>AUC, mean of sites</th><th class="left">AUC by site</th></tr></thead>
<tbody>
{% for row in class_rows %}
<tr><th scope="row">{{ row.task | wbr }}<small>after {{ row.after | wbr }}</small></th>
{% for name in ("accuracy", "balanced_accuracy", "auc") %}
{% set figure = row.figures[name] %}
<td>{{ figure.model | percent }} ({{ figure.zero_shot | percent }},
{{ figure.majority | percent }})</td>
{% endfor %}
<td class="list">{% for site, auc in row.auc_by_site.items() %}{{ site }} {{ auc | percent }}
{%- if not loop.last %}, {% endif %}{% endfor %}</td></tr>
{% endfor %}
</tbody></table></div>
<p>Over the run, in percent and points. Transfer is the mean of a task's scores before its own
stage, Avg that over all stages, Last that after the last one (MGTIL's ACC and, of the AUC, AUC),
BWT Last less what it was when learned.</p>
<div class="wide"><table>
<thead><tr><th>measure</th><th>Transfer</th><th>Avg</th><th>Last</th><th>BWT</th></tr></thead>
<tbody>
{% for name, found in class_metrics.items() %}
<tr><th scope="row">{{ name | readable }}</th><td>{{ found.transfer | percent }}</td>
<td>{{ found.avg | percent }}</td><td>{{ found.last | percent }}</td>
<td>{{ found.bwt | points }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
"""
