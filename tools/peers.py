#!/usr/bin/env python3
"""Other engines, run on request, for `cargo xtask bench desktop`.

The idea
--------
A comparison of two engines is only worth something when both run in the same
minute, on the same core, at the same clock. So the benchmark starts this
program as a child, pins it to the core it uses itself, and asks it for short
bursts of inferences in turns with its own. Between requests this program
sleeps in a read and takes no processor time.

Every engine runs with one thread, batch 1, sequentially, tuned for latency,
and is given its best reasonable form of the model: symbolic batch sizes are
set to 1, and weights that an old exporter also listed as graph inputs become
constants, so that the engine may fold and pack them.

Protocol
--------
One JSON object per line on standard input, one per line on standard output,
strictly in turns. Everything else, including whatever an engine prints, goes
to standard error. A request that fails is answered `{"ok":false,"why":"..."}`
and the program goes on; end of input ends it. An engine that crashes takes
the program with it, which the caller sees as end of output.

`{"cmd":"load","engine":E,"model":"x.onnx","calibration":C,"cache":"dir","tflite":T}`
    Prepares one model for one engine and runs it a few times. Answers
    `{"ok":true,"version":"onnxruntime 1.32.0","isa":"native"}`.

    C   a `.npy` file: float32, shape (samples, ...), exactly as the model's
        own float input takes it. The first 200 samples calibrate int8 models;
        the first one is the input that `time` and `check` use.
    T   null or absent, or the TFLite file that stands for this model in
        LiteRT. Its input must have the shape of the calibration samples.
    cache  a folder, made if missing, for converted and quantized models. Their
        names carry a hash of what they were made from, so a stale one is
        never used and the folder may be deleted at any time.

    Loading the same engine and model again replaces the first. The first load
    of an int8 model quantizes it, which takes from seconds to a minute.

`{"cmd":"time","engine":E,"model":"x.onnx","runs":N}`
    N inferences in a row, on the same input, after N / 8 that are not timed,
    so that caches and clock are as in a long run. Answers
    `{"ok":true,"per_run_ns":T,"call_overhead_ns":O}`, where T is the wall time
    of the loop over N. O is the time of one turn of the same loop calling a
    function that does nothing; it is for the reader to judge by, and is not
    subtracted from anything.

`{"cmd":"check","engine":E,"model":"x.onnx"}`
    One inference. Answers `{"ok":true,"output":[...]}`: the whole first
    output, flattened, as real numbers also where the engine's output is int8.

`{"cmd":"quit"}`
    Answers `{"ok":true}` and ends.

Engines
-------
ort_fp32       onnxruntime, all graph optimizations, preallocated buffers.
ort_int8       The same with onnxruntime's static quantization: QDQ, u8
               activations, s8 weights per channel, min-max calibration. The
               time includes quantizing the float input.
tract_fp32     tract, its default runtime.
tract_int8     The model of ort_int8 in tract, except that Softmax stays in float,
               for tract's int8 Softmax answers all ones.
litert_fp32    LiteRT with its default XNNPACK delegate. Of an int8 TFLite
               file, a float twin is made: the same graph with every integer
               tensor read back as the real numbers it stands for.
litert_int8    LiteRT with the given int8 TFLite file. The time does not
               include quantizing the input: the file takes int8.
openvino_fp32  OpenVINO, latency mode, in true float32. (Left to itself it
               computes in bfloat16 where the processor has it.)
openvino_int8  The same with NNCF post-training quantization, which leaves
               some operations in float; those may run in bfloat16. The time
               includes quantizing the float input.

Limiting instruction sets
-------------------------
The environment variable PITH_PEER_ISA, when set, limits what can be limited,
to show what an older processor would do. Only OpenVINO offers such a switch
(oneDNN's ONEDNN_MAX_CPU_ISA), so for other engines it changes nothing, and
`load` answers "isa":"native" for them in any case. Values are oneDNN's, in
small letters: sse41, avx, avx2, avx2_vnni, avx512_core, avx512_core_vnni,
avx512_core_bf16, avx512_core_amx, and more. With a limit OpenVINO's float
remainder is float32. The switch governs the kernels of oneDNN, not the few
that OpenVINO generates itself.
"""

import ctypes
import faulthandler
import functools
import gc
import hashlib
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
import time
import traceback

# Must be known before the engines are imported.
ISA_LIMIT = os.environ.get("PITH_PEER_ISA", "").strip().lower()
if ISA_LIMIT:
    os.environ["ONEDNN_MAX_CPU_ISA"] = ISA_LIMIT.upper()
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
# A benchmark sends nothing anywhere.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules["openvino_telemetry"] = None

CALIBRATION_SAMPLES = 200
WARM_UP_RUNS = 20
IDLE_RUNS = 1000
# The first operator set in which QuantizeLinear works per channel.
QDQ_OPSET = 13


class PeerError(Exception):
    """A request that cannot be met, with a reason for the caller to show."""


def need(module):
    """Imports a package, late: one that is missing costs only its own engines."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerError(f"cannot import {module}: {error}") from error


# --- Files ---------------------------------------------------------------


class Job:
    """One load request: its files, its samples, and where to keep results."""

    def __init__(self, request):
        self.model = existing_file(request, "model")
        self.calibration = existing_file(request, "calibration")
        self.tflite = existing_file(request, "tflite", required=False)
        if not isinstance(request.get("cache"), str):
            raise PeerError("`cache` must name a folder")
        self.cache = pathlib.Path(request["cache"])
        self.cache.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def samples(self):
        """Calibration samples, float32 (N, ...)."""
        numpy = need("numpy")
        loaded = numpy.load(self.calibration, allow_pickle=False)
        if loaded.dtype != numpy.float32 or loaded.ndim < 2 or len(loaded) == 0:
            raise PeerError(
                f"{self.calibration}: want float32 of shape (samples, ...), "
                f"got {loaded.dtype} of shape {loaded.shape}"
            )
        return numpy.ascontiguousarray(loaded[:CALIBRATION_SAMPLES])

    def batches(self, shape):
        """The samples one by one, in the shape of the model's input."""
        self._check_shape(shape)
        return [sample.reshape(shape) for sample in self.samples]

    def input(self, shape):
        """The one input that is timed: the first sample."""
        self._check_shape(shape)
        return self.samples[0].reshape(shape)

    def _check_shape(self, shape):
        sample = self.samples.shape[1:]
        if tuple(shape) not in (sample, (1, *sample)):
            raise PeerError(
                f"calibration samples have shape {list(sample)}, but the model "
                f"takes {list(shape)}"
            )

    def cached(self, suffix, make, packages, sources):
        """The path of a file made from `sources`, made now if not there yet.

        `make` gets the path to write to. That lies in a folder of its own,
        from where the results move here, so that a run cut short leaves
        nothing behind that looks finished.
        """
        digest = hashlib.sha256(suffix.encode())
        for package in packages:
            digest.update(version(package).encode())
        for source in sources:
            digest.update(hashlib.sha256(source.read_bytes()).digest())
        path = self.cache / f"{self.model.stem}-{digest.hexdigest()[:12]}.{suffix}"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self.cache) as folder:
                made = pathlib.Path(folder, path.name)
                make(made)
                # What is looked for above comes last. It may have a second
                # file to it (OpenVINO's weights), which bears the same stem.
                for companion in made.parent.glob(made.stem + ".*"):
                    if companion != made:
                        companion.rename(self.cache / companion.name)
                made.rename(path)
        return path


def version(package):
    """Name and version of an installed package."""
    return f"{package} {importlib.metadata.version(package)}"


def existing_file(request, key, required=True):
    value = request.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str):
        raise PeerError(f"`{key}` must be a path")
    path = pathlib.Path(value)
    if not path.is_file():
        raise PeerError(f"no such file: {path}")
    return path


def plain_model(job):
    """The model at batch 1 with weights as constants: what every engine gets."""
    onnx = need("onnx")

    def make(path):
        model = onnx.load(job.model)
        graph = model.graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in weights]
        if len(inputs) != 1:
            raise PeerError(f"want one input, the model has {len(inputs)}")
        del graph.input[:]
        graph.input.extend(inputs)
        # Only from this format version on may weights not be inputs.
        model.ir_version = max(model.ir_version, 4)

        for value in [*graph.input, *graph.output]:
            for dim in value.type.tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    dim.dim_value = 1
        # Shapes noted for inner tensors may repeat the symbol; infer them anew.
        del graph.value_info[:]
        onnx.save(onnx.shape_inference.infer_shapes(model), path)

    return job.cached("batch1.onnx", make, ["onnx"], [job.model])


def qdq_model(job, float_operators=()):
    """The model quantized by onnxruntime: QDQ, u8 activations, s8 weights.

    Nodes of the types in `float_operators` are left alone.
    """
    onnx = need("onnx")
    quantization = need("onnxruntime.quantization")
    shape_inference = need("onnxruntime.quantization.shape_inference")
    plain = plain_model(job)
    name, shape = onnx_input(onnx.load(plain))
    batches = job.batches(shape)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.feeds = ({name: batch} for batch in batches)

        def get_next(self):
            return next(self.feeds, None)

    def make(path):
        model = onnx.load(plain)
        if default_opset(model) < QDQ_OPSET:
            model = onnx.version_converter.convert_version(model, QDQ_OPSET)
        flatten_biases(model)
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"node-{index}"
        # By path: handed over as objects, small weights get lost on the way.
        raw, prepared = str(path) + ".raw", str(path) + ".prepared"
        onnx.save(model, raw)
        shape_inference.quant_pre_process(raw, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[
                node.name
                for node in onnx.load(prepared).graph.node
                if node.op_type in float_operators
            ],
        )
        for scratch in (raw, prepared):
            os.unlink(scratch)

    kept = "".join(f"-float-{operator.lower()}" for operator in float_operators)
    sources = [job.model, job.calibration]
    return job.cached(f"qdq{kept}.onnx", make, ["onnxruntime"], sources)


def flatten_biases(model):
    """Makes Gemm biases of shape [1, n] vectors, which the quantizer expects."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and len(node.input) == 3:
            bias = weights.get(node.input[2])
            if bias is not None and len(bias.dims) == 2 and bias.dims[0] == 1:
                del bias.dims[0]


def qdq_model_for_tract(job):
    """The same without int8 Softmax: tract's answers all ones."""
    return qdq_model(job, ("Softmax",))


def nncf_model(job):
    """The model quantized by NNCF, as OpenVINO's own file."""
    openvino = need("openvino")
    plain = plain_model(job)
    batches = job.batches(onnx_input(need("onnx").load(plain))[1])

    def make(path):
        nncf = need("nncf")
        quantized = nncf.quantize(
            openvino.Core().read_model(plain),
            nncf.Dataset(batches),
            subset_size=len(batches),
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)

    packages = ["nncf", "openvino"]
    return job.cached("nncf.xml", make, packages, [job.model, job.calibration])


def float_tflite(job):
    """A TFLite model as bytes, in float: an int8 one is turned back.

    The graph stays as it is; integer tensors with a scale become float ones,
    constants with the values they stood for. A graph with operators that
    convert between types is refused, for those would make no sense then.
    """
    schema = need("ai_edge_litert.schema_py_generated")
    flatbuffers = need("flatbuffers")
    numpy = need("numpy")
    integers = {
        schema.TensorType.INT8: numpy.int8,
        schema.TensorType.INT32: numpy.int32,
    }
    converting = (schema.BuiltinOperator.QUANTIZE, schema.BuiltinOperator.DEQUANTIZE)

    model = schema.ModelT.InitFromPackedBuf(job.tflite.read_bytes(), 0)
    for graph in model.subgraphs:
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode in converting:
                raise PeerError("cannot turn a TFLite file with QUANTIZE operators to float")
        for tensor in graph.tensors:
            scheme = tensor.quantization
            tensor.quantization = None
            if scheme is None or scheme.scale is None or tensor.type not in integers:
                continue
            buffer = model.buffers[tensor.buffer]
            if buffer.data is not None and len(buffer.data):
                raw = numpy.asarray(buffer.data, numpy.uint8).view(integers[tensor.type])
                along = [1] * len(tensor.shape)
                along[scheme.quantizedDimension] = -1
                scale = numpy.asarray(scheme.scale, numpy.float32).reshape(along)
                zero = numpy.asarray(scheme.zeroPoint, numpy.float32).reshape(along)
                real = (raw.reshape(tensor.shape) - zero) * scale
                buffer.data = real.astype(numpy.float32).ravel().view(numpy.uint8)
            tensor.type = schema.TensorType.FLOAT32

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def default_opset(model):
    return max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def onnx_input(model):
    """Name and shape of the input of a model from `plain_model`."""
    value = model.graph.input[0]
    return value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim]


# --- Engines -------------------------------------------------------------
#
# An engine is a class with
#   run      a function of no arguments that does one inference on the fixed
#            input, with as little Python around it as its binding allows;
#   idle     a function that costs the caller the same and does nothing;
#   output() the first output of the last run, as a float array;
#   PACKAGE  the name of the package it comes from.
#
# `run` reaches below the public classes of the pinned versions where these
# only add a layer of Python; at 5 microseconds an inference, that layer shows.


class Ort:
    PACKAGE = "onnxruntime"
    PREPARE = {"fp32": plain_model, "int8": qdq_model}

    def __init__(self, job, precision):
        ort = need("onnxruntime")
        numpy = need("numpy")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(self.PREPARE[precision](job)), options, providers=["CPUExecutionProvider"]
        )

        source = self._session.get_inputs()[0]
        outputs = self._session.get_outputs()
        # The binding borrows these; they must live as long as it does.
        self._input = ort.OrtValue.ortvalue_from_numpy(job.input(source.shape))
        self._outputs = [
            ort.OrtValue.ortvalue_from_numpy(numpy.zeros(out.shape, numpy.float32))
            for out in outputs
        ]
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(source.name, self._input)
        for out, value in zip(outputs, self._outputs):
            self._binding.bind_ortvalue_output(out.name, value)

        self.run = functools.partial(
            self._session._sess.run_with_iobinding, self._binding._iobinding, None
        )
        self.idle = functools.partial(max, 0, 0)

    def output(self):
        return self._outputs[0].numpy()


class Tract:
    PACKAGE = "tract"
    PREPARE = {"fp32": plain_model, "int8": qdq_model_for_tract}

    def __init__(self, job, precision):
        tract = need("tract")
        path = self.PREPARE[precision](job)
        _, shape = onnx_input(need("onnx").load(path))
        model = tract.onnx().load(path)
        model.set_input_fact(0, ",".join(map(str, shape)) + ",f32")
        try:
            runnable = tract.runtime_for_name("default").prepare(model.into_model())
        except tract.TractError as error:
            # The rest is a stack trace.
            raise PeerError("tract: " + str(error).split("\n\nStack")[0]) from error

        self._tract = tract
        self._state = runnable.spawn_state()
        self._input = tract.Tensor.from_numpy(job.input(shape))
        self._inputs = (ctypes.c_void_p * 1)(self._input.ptr)
        self._outputs = (ctypes.c_void_p * runnable.output_count())()
        self.run, self.idle = self._functions()

    def _functions(self):
        """Every run makes its output tensors anew, and they must be freed."""
        library = self._tract.bindings.lib
        forward, free = library.tract_state_run, library.tract_tensor_destroy
        state, inputs, outputs = self._state.ptr, self._inputs, self._outputs
        slots = [
            ctypes.byref(outputs, index * ctypes.sizeof(ctypes.c_void_p))
            for index in range(len(outputs))
        ]

        def run():
            if forward(state, inputs, outputs):
                self._tract.bindings.check(1)
            for slot in slots:
                free(slot)

        nothing = ctypes.CDLL(None).labs

        def idle():
            if nothing(0, inputs, outputs):
                raise AssertionError
            for slot in slots:
                nothing(0, slot)

        return run, idle

    def output(self):
        return self._state.run([self._input])[0].to_numpy()


class LiteRt:
    PACKAGE = "ai-edge-litert"

    def __init__(self, job, precision):
        numpy = need("numpy")
        litert = need("ai_edge_litert.interpreter")
        if job.tflite is None:
            raise PeerError(
                "LiteRT needs a TFLite file for this model: no converter from ONNX "
                "works without TensorFlow or PyTorch"
            )
        content = float_tflite(job) if precision == "fp32" else job.tflite.read_bytes()
        self._interpreter = litert.Interpreter(model_content=content, num_threads=1)
        self._interpreter.allocate_tensors()
        source = self._interpreter.get_input_details()[0]
        if precision == "int8" and source["dtype"] != numpy.int8:
            raise PeerError(f"{job.tflite} takes {source['dtype'].__name__}, not int8")

        value = job.input([int(dim) for dim in source["shape"]])
        if precision == "int8":
            scale, zero = source["quantization"]
            value = numpy.clip(numpy.round(value / scale + zero), -128, 127)
        self._interpreter.set_tensor(source["index"], value.astype(source["dtype"]))

        self.run = self._interpreter._interpreter.Invoke
        self.idle = ().__len__

    def output(self):
        result = self._interpreter.get_output_details()[0]
        value = self._interpreter.get_tensor(result["index"]).astype("float32")
        scale, zero = result["quantization"]
        return (value - zero) * scale if scale else value


class OpenVino:
    PACKAGE = "openvino"
    PREPARE = {"fp32": plain_model, "int8": nncf_model}

    def __init__(self, job, precision):
        openvino = need("openvino")
        numpy = need("numpy")
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            # The caller has pinned the whole process.
            "ENABLE_CPU_PINNING": False,
        }
        if precision == "fp32" or ISA_LIMIT:
            options["INFERENCE_PRECISION_HINT"] = "f32"
        core = openvino.Core()
        model = core.read_model(self.PREPARE[precision](job))
        compiled = core.compile_model(model, "CPU", options)

        self._request = compiled.create_infer_request()
        # Tensors over arrays of ours: nothing is copied or made in a run.
        self._input = job.input(list(compiled.input(0).shape)).copy()
        self._outputs = [
            numpy.zeros(list(out.shape), numpy.float32) for out in compiled.outputs
        ]
        self._request.set_input_tensor(openvino.Tensor(self._input, shared_memory=True))
        for index, out in enumerate(self._outputs):
            self._request.set_output_tensor(
                index, openvino.Tensor(out, shared_memory=True)
            )

        # The class below openvino.InferRequest; arguments: no new inputs,
        # outputs shared, no strings to decode. start_async and wait would
        # hand the work to another thread and back, some 10 microseconds.
        base = need("openvino._pyopenvino").InferRequest
        self.run = functools.partial(base.infer, self._request, {}, True, False)
        self.idle = functools.partial(max, 0, 0, 0, 0)

    def output(self):
        return self._outputs[0]


ENGINES = {
    "ort": Ort,
    "tract": Tract,
    "litert": LiteRt,
    "openvino": OpenVino,
}


# --- Requests ------------------------------------------------------------


def wall_ns(function, runs):
    """Wall time of that many calls in a row, in nanoseconds."""
    turns = itertools.repeat(None, runs)
    start = time.perf_counter_ns()
    for _ in turns:
        function()
    return time.perf_counter_ns() - start


class Server:
    """The loaded engines, and what can be asked of them."""

    def __init__(self):
        self._loaded = {}
        self._commands = {"load": self.load, "time": self.time, "check": self.check}

    def answer(self, line):
        """The answer to one request line, whatever happens; None to end."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise PeerError("a request must be a JSON object")
            command = request.get("cmd")
            if command == "quit":
                return None
            if command not in self._commands:
                raise PeerError(f"no such command: {command}")
            return {"ok": True, **self._commands[command](request)}
        except PeerError as error:
            return {"ok": False, "why": str(error)}
        except Exception as error:  # Engines raise whatever they like.
            traceback.print_exc()
            return {"ok": False, "why": f"{type(error).__name__}: {error}"}

    def load(self, request):
        name = str(request.get("engine"))
        family, _, precision = name.partition("_")
        if family not in ENGINES or precision not in ("fp32", "int8"):
            raise PeerError(f"no such engine: {name}")
        engine_class = ENGINES[family]
        engine = engine_class(Job(request), precision)
        for _ in range(WARM_UP_RUNS):
            engine.run()
        # Here, and never while something is timed.
        gc.collect()
        self._loaded[name, request["model"]] = engine
        return {
            "version": version(engine_class.PACKAGE),
            "isa": ISA_LIMIT if ISA_LIMIT and engine_class is OpenVino else "native",
        }

    def time(self, request):
        engine = self._engine(request)
        runs = request.get("runs")
        if type(runs) is not int or runs < 1:
            raise PeerError("`runs` must be a whole number from 1 on")
        overhead = wall_ns(engine.idle, IDLE_RUNS) / IDLE_RUNS
        wall_ns(engine.run, -(-runs // 8))
        return {"per_run_ns": wall_ns(engine.run, runs) / runs, "call_overhead_ns": overhead}

    def check(self, request):
        engine = self._engine(request)
        engine.run()
        output = [float(value) for value in engine.output().ravel()]
        if not all(map(math.isfinite, output)):
            raise PeerError("the output has values that are no finite numbers")
        return {"output": output}

    def _engine(self, request):
        key = (request.get("engine"), request.get("model"))
        if key not in self._loaded:
            raise PeerError(f"not loaded: {key[0]} with {key[1]}")
        return self._loaded[key]


def main():
    faulthandler.enable()
    gc.disable()
    # Engines print to standard output, some from C. Keep the real one for
    # answers and let everybody else write to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    server = Server()
    for line in sys.stdin:
        if not line.strip():
            continue
        answer = server.answer(line)
        print(json.dumps(answer or {"ok": True}), file=answers, flush=True)
        if answer is None:
            break


if __name__ == "__main__":
    main()
