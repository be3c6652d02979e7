"""Sizes that general coders reach on a file of int8 weights; one JSON object on standard output.

Called by `cargo xtask bench compress --peers` as `coders.py BITS ROWSxLENGTH,... FILE ...`: the shapes of all tensors, and the same weights in several
orders. Weights of four bits are coded one and two a byte. The smallest size counts. Coders that are absent are left out. DeepCABAC is the
entropy coder of nncodec alone, without its container: a context model for each tensor, the better of its two profiles, decoded back.
"""

import bz2
import importlib.util
import json
import lzma
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import brotli
import numpy as np


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


def deepcabac(data, shapes):
    """Bytes of nncodec's coder; none where it is not installed. Its extension is loaded alone: the package around it wants PyTorch."""
    found = list((Path(sysconfig.get_path("purelib")) / "nncodec" / "extensions").glob("deepCABAC*.so"))
    if not found:
        return None
    spec = importlib.util.spec_from_file_location("deepCABAC", found[0])
    coder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(coder)
    weights = np.frombuffer(data, np.int8).astype(np.int32)
    ends = np.cumsum([rows * length for rows, length in shapes])
    tensors = [np.ascontiguousarray(t.reshape(shape)) for t, shape in zip(np.split(weights, ends[:-1]), shapes)]
    off = [coder.HdspMode.AlwaysOff, np.zeros(2, np.int8)]
    unary = 11

    def size(profile):
        encoder, decoder = coder.Encoder(), coder.Decoder()
        for tensor in tensors:
            encoder.initCtxModels(unary, 1)
            skipped = (~tensor.any(axis=1)).astype(np.int32)
            encoder.encodeLayer(tensor, 0, 0, profile, 0, profile, skipped, *off, 0, 0)
        code = bytearray(encoder.finish().tobytes())
        decoder.setStream(code)
        for tensor in tensors:
            decoder.initCtxModels(unary)
            decoded = np.zeros_like(tensor)
            decoder.decodeLayer(decoded, 0, 0, profile, 0, *off, 0, 0)
            assert (decoded == tensor).all()
        return len(code)

    return min(size(0), size(1))


def packed(data):
    """Two weights a byte, the first in the low half."""
    data = data + b"\0" * (len(data) % 2)
    return bytes((low & 15) | (high & 15) << 4 for low, high in zip(data[::2], data[1::2]))


def main():
    orders = [Path(name).read_bytes() for name in sys.argv[3:]]
    forms = orders + [packed(data) for data in orders if sys.argv[1] == "4"]
    shapes = [tuple(map(int, shape.split("x"))) for shape in sys.argv[2].split(",")]
    sizes = {name: [size for form in forms if (size := coder(form)) is not None] for name, coder in CODERS.items()}
    sizes["DeepCABAC"] = [size for data in orders if (size := deepcabac(data, shapes)) is not None]
    print(json.dumps({name: min(size) for name, size in sizes.items() if size}))


main()
