"""`python -m guidedcd.shapes.recipe --out DIR`: make the embedded models from nothing; finished stages are skipped.

The stages `teacher` and `polish` also run on several GPUs, `torchrun --nproc-per-node N -m guidedcd.shapes.recipe ...`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

STAGES = ("vae", "text", "teacher", "polish", "clip", "hps", "internv2", "evaluation")


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m guidedcd.shapes.recipe", description=__doc__)
    parser.add_argument("--stage", default="all", help=f"all, or some of {', '.join(STAGES)}, joined by commas")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for weights, meta.json, log.jsonl and sheet.png"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=1.0, help="multiplies every stage's training time")
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything, on any machine")
    options = parser.parse_args(arguments)

    from guidedcd.shapes.recipe import evaluation, rewards, teacher, text, vae
    from guidedcd.shapes.recipe.session import Session

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(min(8, torch.get_num_threads()))
    options.out.mkdir(parents=True, exist_ok=True)
    session = Session(out=options.out, seed=options.seed, tiny=options.tiny, pace=options.pace)
    session.join()
    session.log("start", torch=torch.__version__, device=str(session.device), seed=options.seed)
    chosen = STAGES if options.stage == "all" else options.stage.split(",")
    unknown = set(chosen) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are: {', '.join(STAGES)}")
    for stage in (s for s in STAGES if s in chosen):
        if options.stage == "all" and session.done(stage):
            session.log(stage, skipped="already done")
            continue
        with session.timed(stage, "everything"):
            if stage in ("clip", "hps", "internv2"):
                rewards.run(session, stage)
            elif stage in ("teacher", "polish"):
                teacher.run(session, stage)
            else:
                {"vae": vae, "text": text, "evaluation": evaluation}[stage].run(session)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
