"""Galleries: embeddings of images, on disk (one file or a folder of parts) or in Milvus.

- `files.py`: one matrix, `gallery.npy`, with its table (.csv) and its record (.json).
- `folder.py`, `parts.py`: a folder of such parts, which rows are added to and deleted from.
- `table.py`, `rows.py`: the table and the matrix of a gallery, read when they are used.
- `storage.py`: folders on disk and in object storage.
- `milvus.py`, `place.py`: a collection of a Milvus server; how users write the place of a gallery.

Nothing here imports torch.
"""

from airnet_cli.core.gallery.files import Gallery, read_gallery
from airnet_cli.core.gallery.folder import open_gallery

__all__ = ["Gallery", "open_gallery", "read_gallery"]
