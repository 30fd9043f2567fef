"""The report of a run: one self-contained HTML file with videos, tables and curves.

In: a run's folder. Out: `report.html`. `page` collects the content and fills `report.html.j2`, which escapes every
value. `charts` lays out the curves of the log, `score_tables` the tables of the evaluation, `videos` embeds the clips.
Open `page` first.
"""
