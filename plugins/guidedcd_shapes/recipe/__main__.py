"""Train the embedded models from scratch: `python -m guidedcd_shapes.recipe --out DIR`. Finished stages are skipped.

Stages can run one by one. `clip`, `internv2` and `evaluation` need the stage `teacher` and can run at the same time.
`dit` needs `vae` and `text`, `dit-evaluation` needs `dit`.
The additional stage `card` writes the model card from meta.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

STAGES = ("vae", "text", "teacher", "clip", "hps", "internv2", "evaluation", "motion", "dit", "dit-evaluation")


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m guidedcd_shapes.recipe", description=__doc__)
    parser.add_argument("--stage", default="all", help=f"all, card, or some of {', '.join(STAGES)}, joined by commas")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for weights, meta.json, log.jsonl and sheet.png"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=1.0, help="multiplies every stage's training time")
    parser.add_argument(
        "--further", action="store_true", help="train a finished teacher, or dit, for its full time again"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps of each stage, on any machine")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/reference/shapes-model-card.md"), help="file that `card` writes"
    )
    options = parser.parse_args(arguments)
    chosen = STAGES if options.stage == "all" else options.stage.split(",")
    unknown = set(chosen) - {*STAGES, "card"}
    if unknown:
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are: {', '.join(STAGES)}, card")
    if chosen == ["card"]:
        from guidedcd_shapes.recipe import card

        card.write(options.out, options.page)
        return

    from guidedcd_shapes.recipe import dit, evaluation, motion, rewards, teacher, text, vae
    from guidedcd_shapes.recipe.session import Session

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(min(8, torch.get_num_threads()))
    options.out.mkdir(parents=True, exist_ok=True)
    session = Session(out=options.out, seed=options.seed, tiny=options.tiny, pace=options.pace)
    session.log("start", torch=torch.__version__, device=str(session.device), seed=options.seed)
    modules = {"vae": vae, "text": text, "evaluation": evaluation, "motion": motion}
    for stage in (s for s in STAGES if s in chosen):
        if options.stage == "all" and session.done(stage):
            session.log(stage, skipped="already done")
            continue
        with session.timed(stage):
            if stage in ("teacher", "dit"):
                (teacher if stage == "teacher" else dit).run(session, options.further)
            elif stage == "dit-evaluation":
                evaluation.run_flow(session)
            elif stage in modules:
                modules[stage].run(session)
            else:
                rewards.run(session, stage)


if __name__ == "__main__":
    main()
