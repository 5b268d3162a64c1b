"""The page that a site makes of its own answers; it stays at the site."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from report.answers.examples import AnsweredPicture
from report.answers.model import LAST, AnswerFigures
from report.answers.page import answers_part, shaded
from report.answers.template import CONFUSION, EXAMPLES
from report.format import breakable, percent, points
from report.learned.page import interval_of
from report.learned.rows import Score
from report.style.links import PLACE, with_links
from report.style.sheet import STYLE

_PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ site }}: answers</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<p>fedmslora · site {{ site }} · plan {{ plan }} · {{ day }}</p>
<h1>Answers of {{ site }} to its own test questions</h1>
<p>Made here, of what lies here: nothing of this page has left the site, and none of it should.</p>
<p class="device">Research only. This is no medical device, and no figure or answer on this page
may guide the care of a patient.</p>
</header>
"""
    + PLACE
    + """
<h2>What every task scores</h2>
<p>In percent, as the task was last scored here; below each figure its 95 % interval, with a picture
and all its questions as one sample. The gain is over the commonest training answer to the same
question.</p>
<div class="wide"><table>
<thead><tr><th>task</th><th>n<small>questions (pictures)</small></th><th>score</th>
<th>gain over the majority answer</th></tr></thead>
<tbody>
{% for task, score, gain in tasks %}
<tr><th scope="row">{{ task.task | wbr }}</th><td>{{ task.questions }} ({{ task.pictures }})</td>
<td>{{ score.value | percent }}<small>{{ score | interval }}</small></td>
<td>{{ gain.value | points }}<small>{{ gain | interval(true) }}</small></td></tr>
{% endfor %}
</tbody></table></div>
{% include "confusion" %}
{% include "examples" %}
</main>
</body>
</html>
"""
)


def site_page(
    names: tuple[str, str],
    day: str,
    figures: AnswerFigures,
    examples: Sequence[AnsweredPicture],
) -> str:
    """Render the page of one site's answers.

    Args:
        names: of the site and of the plan.
        day: on which it is made.
    """
    environment = Environment(
        loader=DictLoader({"confusion": CONFUSION, "examples": EXAMPLES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    page = environment.from_string(_PAGE).render(
        site=names[0],
        plan=names[1],
        day=day,
        style=Markup(STYLE),
        tasks=[(task, *_scores(figures, place)) for place, task in enumerate(figures.tasks)],
        **answers_part(figures, examples),
    )
    return with_links(page)


_FILTERS: Mapping[str, Any] = {
    "percent": percent,
    "points": points,
    "wbr": breakable,
    "shaded": shaded,
    "interval": interval_of,
}


def _scores(figures: AnswerFigures, place: int) -> tuple[Score, Score]:
    task = figures.tasks[place]
    score, gain = task.scores.get(LAST), task.gains.get(LAST)
    return (
        Score(value=None if score is None else score.value, interval=score),
        Score(
            value=None if gain is None else gain.estimate.value,
            interval=None if gain is None else gain.estimate,
        ),
    )
