"""Parquet files with the columns of FastVideo's text-to-video preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


def schema() -> Any:
    """The columns and types of `pyarrow_schema_t2v`."""
    import pyarrow as pa

    tensor = {"bytes": pa.binary(), "shape": pa.list_(pa.int64()), "dtype": pa.string()}
    fields = {"id": pa.string()}
    for name in ("vae_latent", "text_embedding"):
        fields |= {f"{name}_{end}": kind for end, kind in tensor.items()}
    fields |= {name: pa.string() for name in ("file_name", "caption", "media_type")}
    fields |= {name: pa.int64() for name in ("width", "height", "num_frames")}
    fields |= {name: pa.float64() for name in ("duration_sec", "fps")}
    return pa.schema(list(fields.items()))


def row(id_: str, latents: Any, embeds: Any, caption: str = "a red ball", **changes: Any) -> dict[str, Any]:
    """A row as FastVideo writes it: latents (C, F, h, w), embedded tokens (L, D); `changes` replace values."""
    values: dict[str, Any] = {"id": id_, "file_name": id_, "caption": caption, "media_type": "video"}
    for name, tensor in (("vae_latent", latents), ("text_embedding", embeds)):
        array = np.ascontiguousarray(torch.as_tensor(tensor).detach().numpy())
        values |= {f"{name}_bytes": array.tobytes(), f"{name}_shape": list(array.shape)}
        values |= {f"{name}_dtype": str(array.dtype)}
    # Some versions of FastVideo swap width and height, and count latent frames in `num_frames`.
    values |= {"width": 7, "height": 9, "num_frames": len(latents[0]), "duration_sec": 1.0, "fps": 16.0}
    return values | changes


def write(path: Path, rows: Sequence[Mapping[str, Any]], *, group: int = 2, without: Sequence[str] = ()) -> Path:
    """Write rows, `group` of them in each row group, leaving out some columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict(one) for one in rows], schema=schema()).drop_columns(list(without))
    pq.write_table(table, path, row_group_size=group, compression="zstd")
    return path
