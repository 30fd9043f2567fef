"""The report of a run: one self-contained HTML file with videos, tables and curves.

In: a run's folder. Out: `report.html`. `page` assembles it, `charts` draws the curves of the log, `score_tables` the
tables of the evaluation, `videos` embeds the clips. Open `page` first.
"""
