"""The evaluation's figures as HTML tables."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from guidedcd.evaluation.tables import (
    OURS,
    difference,
    figure,
    interval,
    scores_of,
    sense,
    settings,
    signed,
    title,
    verdict,
)

WORDS = {"good": "better", "bad": "worse"}


def score_tables(evaluation: Mapping[str, Any]) -> str:
    """A table per split: scores down, ways of making videos across, then the paired differences."""
    rows = [row for row in evaluation["rows"] if row.get("source", "measured") == "measured"]
    few = next(row for row in rows if row["name"] == evaluation["against"])
    ours, others = rows[0], [row for row in rows if row["name"] != OURS]
    seeds = len(evaluation["seeds"])
    tried = sum(one["steps"] == few["steps"] for one in evaluation["choice"]["tried"])
    on = evaluation["choice"]["prompts"]
    chosen = f"The few-step teacher is the best of {tried} settings, chosen on {on} other prompts. " if tried else ""
    found = [
        f"<p>Student and teacher get the same prompts and the same initial noise. {chosen}Small figures are 95 % "
        "intervals by the bootstrap over prompts, each score's on its own; differences are paired.</p>"
    ]
    for split, about in evaluation["splits"].items():
        count = f"{len(about['prompts'])} {about['title']}" + (f", {seeds} seeds each" if seeds > 1 else "")
        head = "".join(
            f'<th scope="col">{escape(row["label"])}<br><small>{escape(settings(row))}</small></th>' for row in rows
        )
        head += "".join(
            f'<th scope="col">student minus {escape(row["label"])}<br><small>{_sameness(ours, row)}</small></th>'
            for row in others
        )
        body = []
        for key in scores_of(evaluation, split):
            cells = "".join(_score(row["scores"].get(split, {}).get(key)) for row in rows)
            cells += "".join(_difference(evaluation, row["name"], split, key) for row in others)
            main = ' class="ours"' if key == evaluation.get("headline") else ""
            name, note = title(evaluation, key), [key, sense(evaluation, key)]
            note = ", ".join(part for part in note if part and part != name)
            body.append(f'<tr{main}><th scope="row">{escape(name)}<small>{escape(note)}</small></th>{cells}</tr>')
        found.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(count)}"><table>'
            f'<caption>{escape(count)}</caption><thead><tr><th scope="col">score</th>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
            f"{_prompts(about)}"
        )
    return "\n".join(found)


def _sameness(ours: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What a row has in common with the student's."""
    both = {"steps": "same steps", "evaluations": "same network calls"}
    return " and ".join(words for key, words in both.items() if ours.get(key) == row.get(key))


def _score(score: Mapping[str, Any] | None) -> str:
    if not score or score["mean"] is None:
        return "<td>-</td>"
    return f"<td>{figure(score['mean'])}<small>{escape(interval(score))}</small></td>"


def _difference(evaluation: Mapping[str, Any], against: str, split: str, key: str) -> str:
    found = difference(evaluation, against, split, key)
    if not found or found["mean"] is None:
        return "<td>-</td>"
    known = verdict(evaluation, found, key)
    mark = f'<span class="{known}">{signed(found["mean"])} {WORDS[known]}</span>' if known else signed(found["mean"])
    return f"<td>{mark}<small>{escape(interval(found, signed))}</small></td>"


def _prompts(about: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{escape(prompt)}</li>" for prompt in about["prompts"])
    return f"<details><summary>The {escape(about['title'])}</summary><ol>{items}</ol></details>"


def choices(evaluation: Mapping[str, Any]) -> str:
    """What was tried for the few-step teacher."""
    tried = evaluation["choice"]["tried"]
    if not tried:
        return ""
    rows = "".join(
        f'<tr{" class=ours" if one["chosen"] else ""}><th scope="row">{escape(one["label"])}, {escape(one["solver"])}, '
        f"omega {one['omega']:g}{' (chosen)' if one['chosen'] else ''}</th>{_score(one)}</tr>"
        for one in tried
    )
    what = escape(title(evaluation, tried[0]["score"]))
    return (
        f"<details><summary>What was tried for the few-step teacher</summary><table><caption>{what}, on "
        f"{evaluation['choice']['prompts']} prompts that are not measured</caption>"
        f'<thead><tr><th scope="col">setting</th><th scope="col">score</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


def cards(evaluation: Mapping[str, Any]) -> str:
    """Figures from the teacher's model card, measured when it was made, from other noise."""
    rows = [row for row in evaluation["rows"] if row.get("source") == "model card"]
    keys = list(dict.fromkeys(k for row in rows for scores in row["scores"].values() for k in scores))
    if not rows or not keys:
        return ""
    head = "".join(f'<th scope="col">{escape(title(evaluation, key))}</th>' for key in keys)
    body = "".join(
        f'<tr><th scope="row">{escape(row["label"])}<small>{escape(settings(row))}, '
        f"{escape(evaluation['splits'].get(split, {}).get('title', split))}</small></th>"
        + "".join(_score(scores.get(key)) for key in keys)
        + "</tr>"
        for row in rows
        for split, scores in row["scores"].items()
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Model card"><table><caption>Measured when the '
        "teacher was made, from other noise</caption>"
        f'<thead><tr><th scope="col">teacher</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
