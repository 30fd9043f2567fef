"""The stores of a run whose videos have several sizes: one store for each bucket, and all of them as one.

The store of a bucket is that of the same run with a teacher of the bucket's size. It leaves out the clips that fall
into other buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from guidedcd.config.bucket import Bucket
from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.console import console
from guidedcd.data.bucket_inspection import sized
from guidedcd.data.geometry import Geometry
from guidedcd.data.routing import Sample
from guidedcd.devices import blame_memory, device
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing.preprocess import WHOLE, preprocess
from guidedcd.preprocessing.store import Draw, LatentStore, open_store


def preprocess_all(
    run: Run,
    *,
    store_folder: Path | None = None,
    teacher: Teacher | None = None,
    shard: tuple[int, int] = WHOLE,
    fill_parts: bool = True,
    accept: Callable[[Sample], object] | None = None,
) -> list[Path]:
    """Compute the missing shards of a run's stores: one store for each bucket, or the only one without buckets.

    Args:
        run: The configuration.
        store_folder: The store's folder; with buckets, the folder that contains one for each, such as `33x256x448`.
        teacher: As in `preprocess`.
        shard: As in `preprocess`.
        fill_parts: As in `preprocess`.
        accept: As in `preprocess`.

    Returns:
        The folders of the stores, in the order of the buckets.

    Raises:
        GuidedCDError: As `preprocess`, or the teacher cannot be used in several sizes.
    """
    if not run.preprocess.buckets:
        return [
            preprocess(
                run, store_folder=store_folder, teacher=teacher, shard=shard, fill_parts=fill_parts, accept=accept
            )
        ]
    sizes = dict(runs_of(run))  # an impossible bucket is an error before anything is loaded
    if teacher is None:
        with blame_memory("the teacher"):
            teacher = build_teacher(run.teacher, device(run.device))
    folders = []
    for bucket, one in sizes.items():
        console.print(f"bucket   {bucket}")
        folder = None if store_folder is None else store_folder / str(bucket)
        resized = of_size(teacher, one.teacher)
        folders.append(
            preprocess(one, store_folder=folder, teacher=resized, shard=shard, fill_parts=fill_parts, accept=accept)
        )
    return folders


def runs_of(run: Run) -> Iterator[tuple[Bucket, Run]]:
    """Each bucket of a run, and the run with a teacher of that size.

    Raises:
        GuidedCDError: The teacher has one size only.
    """
    for text in run.preprocess.buckets:
        bucket = Bucket.parse(text)
        yield bucket, attrs.evolve(run, teacher=sized(run.teacher, bucket))


def of_size(teacher: Teacher, chosen: Chosen) -> Teacher:
    """The teacher for videos of another size; it shares the networks.

    Args:
        teacher: The loaded teacher.
        chosen: The same teacher with the other size as its options.

    Raises:
        GuidedCDError: The size is not possible, or noise levels depend on it.
    """
    with blame_memory("the teacher"):
        outline = chosen.outline()
    resize = getattr(teacher, "resized", None)
    if resize is None:
        raise GuidedCDError(
            f"--preprocess.buckets: the teacher '{chosen.name}' cannot be used in several sizes: it has no method "
            "`resized`."
        )
    if not _same(teacher.schedule, outline.schedule):
        raise GuidedCDError(
            f"--preprocess.buckets: the noise levels of teacher '{chosen.name}' depend on the size of its videos, so "
            "one student cannot be trained on several: leave the buckets out."
        )
    geometry: Geometry = outline.geometry
    if geometry.latent_padding != teacher.geometry.latent_padding:
        raise GuidedCDError(
            f"--preprocess.buckets: {geometry.frames} frames need {geometry.latent_padding} latent frames of padding "
            f"and the teacher's {teacher.geometry.frames} frames {teacher.geometry.latent_padding}; use numbers of "
            "frames that need as many."
        )
    resized: Teacher = resize(geometry)
    return resized


def _same(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    """Whether two schedules have the same noise levels and times."""
    pairs = [(one.alpha, other.alpha), (one.sigma, other.sigma)]
    if one.times is not None and other.times is not None:
        pairs.append((one.times, other.times))
    return all(torch.equal(first.cpu(), second.cpu()) for first, second in pairs)


class BucketStores:
    """Several stores of a run as one: the draws of the first store, then those of the second, and so on.

    Args:
        stores: Complete stores, at least one.

    Raises:
        GuidedCDError: They have no draws.
    """

    def __init__(self, stores: Sequence[LatentStore]) -> None:
        self.stores = [store for store in stores if len(store)]
        if not self.stores:
            raise GuidedCDError(
                "none of the clips falls into a bucket of --preprocess.buckets; `guidedcd data inspect` states why."
            )
        self.identity: dict[str, Any] = self.stores[0].identity
        """That of the first store; the others differ in the size of the videos."""
        self.scores = self.stores[0].scores
        """Folders of the first store's gradients, by energy with stored gradients."""

    @property
    def sizes(self) -> list[int]:
        """Numbers of draws by store."""
        return [len(store) for store in self.stores]

    def __len__(self) -> int:
        """Number of draws."""
        return sum(self.sizes)

    def __getitem__(self, position: int) -> Draw:
        """The draw at `position`.

        Raises:
            GuidedCDError: The shard is damaged.
        """
        for store in self.stores:
            if position < len(store):
                return store[position]
            position -= len(store)
        raise IndexError(position)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The fields of the `Sample` of every stored clip."""
        return [sample for store in self.stores for sample in store.samples]

    @property
    def largest(self) -> LatentStore:
        """The store with the most draws."""
        return max(self.stores, key=len)


def open_stores(run: Run, folders: Sequence[Path]) -> BucketStores:
    """The complete stores in `folders`, with the scores of a run's energies.

    Raises:
        GuidedCDError: As `LatentStore`.
    """
    return BucketStores([open_store(run, folder) for folder in folders])
