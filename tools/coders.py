"""Sizes that general coders reach on a file of int8 weights; one JSON object on standard output.

Called by `cargo xtask bench compress --peers` as `coders.py BITS FILE ...`: the same weights in several orders. Weights of four bits are coded
one and two a byte. The smallest size counts. Coders that are absent are left out.
"""

import bz2
import json
import lzma
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import brotli


def command(arguments, data, result):
    """Bytes of the file that a command makes of `data`, which it finds as `in`; none if it is absent or fails."""
    if shutil.which(arguments[0]) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").write_bytes(data)
        ran = subprocess.run(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return (Path(folder) / result).stat().st_size if ran.returncode == 0 else None


def xz(data):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return len(lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters))


CODERS = {
    "zstd -22": lambda data: command(["zstd", "--ultra", "-22", "-q", "in", "-o", "out"], data, "out"),
    "xz -9e": xz,
    "brotli -11": lambda data: len(brotli.compress(data, quality=11, lgwin=24)),
    "bzip2": lambda data: len(bz2.compress(data, 9)),
    "lrzip -z": lambda data: command(["lrzip", "-z", "-T", "-L", "9", "-q", "-o", "out", "in"], data, "out"),
    "zpaq -m5": lambda data: command(["zpaq", "add", "out.zpaq", "in", "-m5"], data, "out.zpaq"),
}


def packed(data):
    """Two weights a byte, the first in the low half."""
    data = data + b"\0" * (len(data) % 2)
    return bytes((low & 15) | (high & 15) << 4 for low, high in zip(data[::2], data[1::2]))


def main():
    forms = [Path(name).read_bytes() for name in sys.argv[2:]]
    if sys.argv[1] == "4":
        forms += [packed(data) for data in forms]
    sizes = {name: [size for form in forms if (size := coder(form)) is not None] for name, coder in CODERS.items()}
    print(json.dumps({name: min(size) for name, size in sizes.items() if size}))


main()
