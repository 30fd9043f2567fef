"""Energy-guided, reward-augmented consistency distillation of video diffusion models.

    run = guidedcd.Run.from_profile("shapes", energies={"pta": {"relative": 1.6}}, train={"steps": 100})
    folder = guidedcd.distil(run)
    videos = guidedcd.load_student(folder)(["a red circle moving left"], steps=4)     # (B, F, 3, H, W) in [0, 1]

Every name is imported on first use: `import guidedcd` itself imports no torch.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys


def _leave_current_folder() -> None:
    """Take the current folder off the path for modules, which `python -m guidedcd` searches first.

    A folder of videos that somebody sent may hold a `diffusers.py` or the metadata of a plugin. It stays on the path
    where this package can be imported from nowhere else.
    """
    # Only while Python locates the module that `-m` names is "-m" the first argument.
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path or not sys.path or os.path.abspath(sys.path[0]) != os.getcwd():
        return
    first = sys.path.pop(0)
    if importlib.machinery.PathFinder.find_spec("guidedcd") is None:
        sys.path.insert(0, first)


_leave_current_folder()

from guidedcd.version import __version__ as __version__  # noqa: E402

_PLACES = {
    # for people who run
    "Run": "guidedcd.config.run",
    "distil": "guidedcd.workflow",
    "preprocess": "guidedcd.preprocessing.preprocess",
    "plan": "guidedcd.planning.plan",
    "inspect_data": "guidedcd.data.inspection",
    "load_student": "guidedcd.inference.loading",
    "load_teacher": "guidedcd.inference.loading",
    "StudentPipeline": "guidedcd.inference.pipeline",
    "evaluate": "guidedcd.evaluation.evaluate",
    "compare": "guidedcd.evaluation.compare",
    "report": "guidedcd.evaluation.report.page:write_report",
    "export": "guidedcd.inference.export.export",
    "convert": "guidedcd.inference.export.convert",
    "speed_up": "guidedcd.acceleration.switch",
    # for people who extend
    "hookimpl": "guidedcd.plugins.hookspecs",
    "Register": "guidedcd.plugins.hookspecs",
    "ComponentConfig": "guidedcd.plugins.configs",
    "EnergyConfig": "guidedcd.plugins.configs",
    "RewardConfig": "guidedcd.plugins.configs",
    "RouteConfig": "guidedcd.plugins.configs",
    "TeacherConfig": "guidedcd.plugins.configs",
    "DatasetConfig": "guidedcd.plugins.configs",
    "MetricConfig": "guidedcd.plugins.configs",
    "Seen": "guidedcd.diffusion.seen",
    "Sample": "guidedcd.data.routing",
    "Route": "guidedcd.data.routing",
    "RoutingRule": "guidedcd.data.routing",
    "Clip": "guidedcd.data.clips",
    "ClipError": "guidedcd.data.clips",
    "Prompt": "guidedcd.data.clips",
    "Geometry": "guidedcd.data.geometry",
    "Teacher": "guidedcd.models.teachers.protocol",
    "LatentTeacher": "guidedcd.models.teachers.latent",
    "FrozenReward": "guidedcd.rewards.frozen",
    "GradientReplay": "guidedcd.acceleration.cuda_graphs_backward",
    "GuidedCDError": "guidedcd.errors",
    "PluginError": "guidedcd.errors",
}
"""By public name, the module that defines it, as "module" or "module:attribute"."""

__all__ = sorted([*_PLACES, "__version__"])


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _PLACES:
        raise AttributeError(f"module 'guidedcd' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, imported or not."""
    return sorted({*globals(), *__all__})
