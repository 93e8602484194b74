"""The place of a gallery, as users write it: a path, or a collection of a Milvus server."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class MilvusPlace:
    """Where a collection is."""

    host: str
    port: int
    collection: str
    tls: bool = False
    """Whether the connection is encrypted: milvuss:// instead of milvus://."""

    @property
    def name(self) -> str:
        """The name of the collection, like the file name of a gallery on disk."""
        return self.collection

    @property
    def address(self) -> str:
        """Host and port of the server."""
        return f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that nothing crosses a network."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"milvus{'s' * self.tls}://{self.address}/{self.collection}"


def gallery_place(place: str | Path) -> Path | MilvusPlace:
    """The place of a gallery: a path, or milvus://HOST:PORT/COLLECTION (milvuss:// with TLS).

    >>> gallery_place("milvuss://db.example.com:19530/people")
    MilvusPlace(host='db.example.com', port=19530, collection='people', tls=True)

    Raises:
        UsageError: it is another URL, or half an address.
    """
    is_milvus = isinstance(place, str) and place.startswith(("milvus:", "milvuss:"))
    if isinstance(place, str) and "://" in place and not is_milvus:
        raise UsageError(
            f"'{place}' is a URL, and galleries are read from disk; fetch it first, as with "
            "`aws s3 cp --recursive`, and give the folder"
        )
    if not is_milvus:
        return Path(place)
    host, name = r"(\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]]+)", r"([A-Za-z_][A-Za-z0-9_]{0,254})"
    found = re.fullmatch(rf"milvus(s?)://{host}:([0-9]{{1,5}})/{name}", str(place))
    if found is None or not 0 < int(found[3]) < 2**16:
        raise UsageError(
            f"'{place}' is not a collection; write milvus://HOST:PORT/COLLECTION (milvuss:// with "
            "TLS), the last with letters, digits and _, as in milvus://localhost:19530/people"
        )
    return MilvusPlace(found[2], int(found[3]), found[4], tls=bool(found[1]))
