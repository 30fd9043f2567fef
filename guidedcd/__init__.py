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
from typing import TYPE_CHECKING

__version__ = "0.1.0"


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

if TYPE_CHECKING:  # for type checkers and editors, which do not read the table below
    from guidedcd.acceleration.cuda_graphs_backward import GradientReplay as GradientReplay
    from guidedcd.acceleration.switch import speed_up as speed_up
    from guidedcd.config.merge import inside as inside
    from guidedcd.config.run import Run as Run
    from guidedcd.data.buckets import ClipSize as ClipSize
    from guidedcd.data.clips import Clip as Clip
    from guidedcd.data.clips import ClipError as ClipError
    from guidedcd.data.clips import Prompt as Prompt
    from guidedcd.data.geometry import Geometry as Geometry
    from guidedcd.data.inspection import inspect_data as inspect_data
    from guidedcd.data.routing import Route as Route
    from guidedcd.data.routing import RoutingRule as RoutingRule
    from guidedcd.data.routing import Sample as Sample
    from guidedcd.diffusion.seen import Seen as Seen
    from guidedcd.errors import GuidedCDError as GuidedCDError
    from guidedcd.errors import NeedError as NeedError
    from guidedcd.errors import PluginError as PluginError
    from guidedcd.evaluation.compare import compare as compare
    from guidedcd.evaluation.evaluate import evaluate as evaluate
    from guidedcd.evaluation.report.page import write_report as report  # noqa: F401
    from guidedcd.evaluation.suites.contract import Suite as Suite
    from guidedcd.inference.export.convert import convert as convert
    from guidedcd.inference.export.export import export as export
    from guidedcd.inference.loading import load_student as load_student
    from guidedcd.inference.loading import load_teacher as load_teacher
    from guidedcd.inference.pipeline import StudentPipeline as StudentPipeline
    from guidedcd.models.teachers.latent import LatentTeacher as LatentTeacher
    from guidedcd.models.teachers.protocol import Teacher as Teacher
    from guidedcd.planning.plan import plan as plan
    from guidedcd.plugins.configs import ComponentConfig as ComponentConfig
    from guidedcd.plugins.configs import DatasetConfig as DatasetConfig
    from guidedcd.plugins.configs import EnergyConfig as EnergyConfig
    from guidedcd.plugins.configs import MetricConfig as MetricConfig
    from guidedcd.plugins.configs import OutputEnergyConfig as OutputEnergyConfig
    from guidedcd.plugins.configs import RewardConfig as RewardConfig
    from guidedcd.plugins.configs import RouteConfig as RouteConfig
    from guidedcd.plugins.configs import SuiteConfig as SuiteConfig
    from guidedcd.plugins.configs import TeacherConfig as TeacherConfig
    from guidedcd.plugins.configs import WrapperConfig as WrapperConfig
    from guidedcd.plugins.hookspecs import Register as Register
    from guidedcd.plugins.hookspecs import hookimpl as hookimpl
    from guidedcd.preprocessing.preprocess import preprocess as preprocess
    from guidedcd.rewards.frozen import FrozenReward as FrozenReward
    from guidedcd.workflow import distil as distil

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
    "OutputEnergyConfig": "guidedcd.plugins.configs",
    "RewardConfig": "guidedcd.plugins.configs",
    "RouteConfig": "guidedcd.plugins.configs",
    "TeacherConfig": "guidedcd.plugins.configs",
    "DatasetConfig": "guidedcd.plugins.configs",
    "MetricConfig": "guidedcd.plugins.configs",
    "SuiteConfig": "guidedcd.plugins.configs",
    "WrapperConfig": "guidedcd.plugins.configs",
    "inside": "guidedcd.config.merge",
    "Suite": "guidedcd.evaluation.suites.contract",
    "Seen": "guidedcd.diffusion.seen",
    "Sample": "guidedcd.data.routing",
    "Route": "guidedcd.data.routing",
    "RoutingRule": "guidedcd.data.routing",
    "Clip": "guidedcd.data.clips",
    "ClipSize": "guidedcd.data.buckets",
    "ClipError": "guidedcd.data.clips",
    "Prompt": "guidedcd.data.clips",
    "Geometry": "guidedcd.data.geometry",
    "Teacher": "guidedcd.models.teachers.protocol",
    "LatentTeacher": "guidedcd.models.teachers.latent",
    "FrozenReward": "guidedcd.rewards.frozen",
    "GradientReplay": "guidedcd.acceleration.cuda_graphs_backward",
    "GuidedCDError": "guidedcd.errors",
    "NeedError": "guidedcd.errors",
    "PluginError": "guidedcd.errors",
}
"""By public name, the module that defines it, as "module" or "module:attribute"."""

__all__ = sorted([*_PLACES, "__version__"])


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _PLACES:
        raise AttributeError(f"module 'guidedcd' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    """Every public name, imported or not."""
    return sorted({*globals(), *__all__})
