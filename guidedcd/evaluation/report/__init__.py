"""Reports: one self-contained HTML file about a run, with videos, tables and curves, or about several runs.

In: folders of runs. Out: `report.html` or `comparison.html`. `page` collects the content of one run, `side_by_side`
that of several; `template` fills the files `*.html.j2`, which escape every value. `charts` lays out lines, `curves`
names those of the log, `score_tables` has the tables of the evaluation, `videos` embeds the clips. Open `page` first.
"""
