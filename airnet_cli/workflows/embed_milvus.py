"""Embed images into a collection of a Milvus server, batch by batch."""

import time
from pathlib import Path

from airnet_cli.core.data.sources import path_key
from airnet_cli.core.gallery.milvus import open_collection
from airnet_cli.core.gallery.place import MilvusPlace
from airnet_cli.core.processes import reporting_dead_workers
from airnet_cli.core.progress import Progress
from airnet_cli.workflows.collection import milvus_token
from airnet_cli.workflows.embed_parts import (
    EmbedOptions,
    Images,
    Noted,
    bad_image,
    gallery_record,
    load_embedder,
)
from airnet_cli.workflows.embedded import EmbeddedGallery, split_seconds
from airnet_cli.workflows.runs import Model


def embed_into_collection(
    options: EmbedOptions, place: MilvusPlace, model: Model, noted: Noted, progress: Progress
) -> EmbeddedGallery:
    """Embed into Milvus; others may do so at the same time, each with images of their own."""
    images = Images.of(options, Path())
    embedder = load_embedder(options, model, noted)
    record = gallery_record(embedder, model) | {"dtype": "float32"}
    del record["versions"]  # those of one job; a collection is written by many
    further = {name: cells for name, cells in images.columns.items() if name != "path"}
    record["columns"] = list(further)
    collection = open_collection(place, token=milvus_token(), record=record)
    paths = [Path(path) for path in images.places]
    keys = [path_key(path) for path in paths]
    stamps = collection.stamps(keys) if options.resume else {}
    missing = [i for i, key in enumerate(keys) if stamps.get(key) != _file_stamp(paths[i])]
    before = len(keys) - len(missing)
    if before:
        noted(f"{before:,} of {len(keys):,} images are there already")
    started, reading, network, done = time.perf_counter(), 0.0, 0.0, 0
    skipped: list[dict[str, str]] = []
    progress("embedding", 0, len(missing), "images")
    with reporting_dead_workers("repeat the command with --resume and --workers 0"):
        for batch in embedder.embed_batches([paths[i] for i in missing]):
            if batch.bad and options.on_bad_image == "error":
                raise bad_image(paths[missing[batch.bad[0][0]]], batch.bad[0][1])
            skipped += [{"path": keys[missing[i]], "reason": reason} for i, reason in batch.bad]
            rows = []
            for i, values in zip(batch.indices, batch.embeddings.numpy(), strict=True):
                row = missing[i]
                cells = {name: cells[row] for name, cells in further.items()}
                own = {"path": keys[row], "file": _file_stamp(paths[row]), "columns": cells}
                rows.append({**own, "embedding": values})
            collection.append(rows)
            reading += batch.reading_seconds
            network += batch.network_seconds
            done += len(batch.indices) + len(batch.bad)
            progress("embedding", done, len(missing), "images")
    return EmbeddedGallery(
        path=place,
        record={**collection.record, "rows": collection.count()},
        skipped=tuple(skipped),
        model=model,
        device=embedder.device.type,
        images=len(missing),
        images_before=before,
        seconds=split_seconds(time.perf_counter() - started, reading, network),
    )


def _file_stamp(path: Path) -> str:
    """Size and time of a file, which show that it changed; empty if it doesn't exist."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
