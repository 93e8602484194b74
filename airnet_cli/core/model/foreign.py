"""Files of weights from strangers, looked at before they are read.

torch runs no code from a `.pth` file (`weights_only=True`), but a small one can still ask it for
any amount of memory or time: by a packed zip, by `bytearray(10**10)`, by tuples in tuples in
tuples. And it does not compare the checksums that are in a zip. Here the opcodes of the pickles are
read, and nothing is done that they say.

A `.pth` file is a zip of one pickle and the bytes of each tensor; or, from before torch 1.6, five
pickles and then the bytes. A `.safetensors` file begins with the length of its header.
"""

import io
import pickletools
import zipfile
from pathlib import Path

LARGEST_HEADER = 16 * 2**20
"""Bytes of names, shapes and metadata: some hundred kilobytes, and eight for each identity."""
LARGEST_PICKLE = 2 * 2**20
"""Bytes: names, shapes and places of tensors. ResNet-50 has 60 kB, with an optimizer 200 kB."""
MOST_MEMBERS = 100_000
LARGEST_LIST = 16 * 2**20
"""Bytes of the zip's list of members, which is read whole."""
MOST_VALUES = 10_000_000
"""Values that a pickle stands for when each is written out where it is used."""
OLD_PICKLES = 5

GLOBALS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(
        ("torch", f"{name}Storage")
        for name in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float")
    ),
    *(("torch", f"{name}Storage") for name in ("Half", "Int", "Long", "Short")),
}
"""What plain dictionaries of dense tensors are put together by. torch allows more, such as
`bytearray`, of any length."""


def check_safetensors(path: Path) -> None:
    """See that a `.safetensors` file has the header that it says, and not a huge one.

    Raises:
        ValueError: it does not; with the reason.
        OSError: it can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > size:
        raise ValueError(
            f"it has {size:,} bytes, and should begin with {header:,} that describe its tensors"
        )
    if header > LARGEST_HEADER:
        raise ValueError(f"it describes its tensors by {header:,} bytes")


def check_pth(path: Path) -> None:
    """See that a `.pth` file holds plain values and tensors, whole and not larger than it is.

    Raises:
        ValueError: it does not; with the reason.
        OSError: it can't be read.
    """
    with _Bounded(io.FileIO(path)) as file:
        if file.read(4) == b"PK\3\4":
            _check_zip(file)
        else:
            file.seek(0)
            start = io.BytesIO(file.read(LARGEST_PICKLE))
            for _ in range(OLD_PICKLES):
                _check_pickle(start)


class _Bounded(io.BufferedReader):
    """Reads a zip; not all of it at once, however long it says that its list is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LARGEST_LIST:
            raise ValueError(f"its list of members has {size / 2**20:,.0f} MiB")
        return super().read(size)


def _check_zip(file: _Bounded) -> None:
    size = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as opened:
            members = opened.infolist()
            names = {member.filename for member in members}
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(names) < len(members) or len(members) > MOST_MEMBERS or len(pickles) != 1:
                raise ValueError("its members are not those of a file that torch wrote")
            is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if is_packed or sum(member.file_size for member in members) > size:
                raise ValueError("its members are packed, which torch does not do")
            if pickles[0].file_size > LARGEST_PICKLE:
                raise ValueError(f"it describes its tensors by {pickles[0].file_size:,} bytes")
            broken = opened.testzip()
            if broken is not None:
                raise ValueError(f"the checksum of {broken} is wrong: it was damaged")
            _check_pickle(io.BytesIO(opened.read(pickles[0])))
    except (ValueError, OSError):
        raise
    # zipfile raises nearly anything on broken bytes (struct.error, NotImplementedError, ...).
    except Exception as error:
        raise ValueError(f"it is a broken zip ({error})") from None


def _check_pickle(file: io.BytesIO) -> None:
    """Read a pickle's opcodes up to its end; keep count of what each value on the stack holds.

    A tuple is hashed by hashing what is in it: one that holds another twice, and so on forty times,
    would take years.
    """
    stack: list[int | None] = []  # values that each entry stands for; None: a mark
    memo: dict[object, int] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                if opcode.name != "GLOBAL" or (module, name) not in GLOBALS:
                    raise ValueError(
                        f"it holds more than tensors ({str(argument)[:80]}), and code from a file "
                        "is never run"
                    )
            if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
                continue
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                top = stack[-1]
                assert top is not None
                memo[argument] = top
                continue
            values = 1
            before = list(opcode.stack_before)
            if pickletools.markobject in before:
                while (value := stack.pop()) is not None:
                    values += value
                before = before[: before.index(pickletools.markobject)]
            for _ in before:
                value = stack.pop()
                assert value is not None
                values += value
            if values > MOST_VALUES:
                raise ValueError("it holds the same values over and over")
            for after in opcode.stack_after:
                stack.append(None if after is pickletools.markobject else values)
    except ValueError:
        raise
    except (AssertionError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"it is no pickle ({type(error).__name__})") from None
