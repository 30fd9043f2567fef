"""Comparing students with their teacher on the same prompts and noise.

In: run folders. Out: `evaluation.json`, tables with bootstrap intervals, and the report. `protocol` fixes prompts and
noise, `arms` measures one way of sampling, `bootstrap` computes intervals, `tables` prints, `report/` writes the page.
Open `evaluate` first.
"""
