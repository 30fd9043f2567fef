"""Claims tested by small distillation runs: the paper's, those of a plugin, or an author's own component.

A proof is a TOML file: arms (options of runs), metrics and claims. Each arm is trained and measured with every seed,
and each result is one file; a ledger compares them. The input is a proof and a choice of arms and seeds. The output is
a folder with `results/`, `ledger.json` and `ledger.md`. Open `proof.py` first, then `prove.py`.
"""
