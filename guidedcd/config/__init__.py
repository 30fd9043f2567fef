"""From flags, TOML files and profiles to one frozen `Run`. No torch.

In: texts and tables of options. Out: a `Run` that contains every option of a distillation. `sources` reads one source,
`merge` merges sources in order of precedence, `structure` converts values to types and names the option at fault,
`option_types` reads types and limits of option classes, `sections` and `sampling` declare the engine's own
options, `old_names` has earlier spellings. Open `run` first.
"""
