"""Saves the ONNX models that the tests serve, with MLflow itself, and what its server answers.

Run as a process, as `make_models.py` is.
"""

import json
import logging
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import xgboost
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc.scoring_server import invocations
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from skl2onnx import to_onnx
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

FRAME = pd.DataFrame({"hour": np.arange(60.0), "day": np.arange(60) / 7, "late": np.arange(60) % 3})
LABELS = np.arange(60) % 2
ROWS = FRAME.to_numpy(np.float32)
TEXT = pd.DataFrame({"carrier": ["AA", "UA", "DL"] * 20, "distance": np.arange(60.0)})
MACHINE = {"opset_imports": [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]}


def tensors(**shapes):
    """Make a signature of tensors by name."""
    specs = [TensorSpec(np.dtype(dtype), shape, name) for name, (dtype, *shape) in shapes.items()]
    return ModelSignature(inputs=Schema(specs))


def graph(nodes, inputs, outputs, weights=()):
    """Make a model by hand; each input and output is a name, a type and a shape."""
    described = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in some]
        for some in (inputs, outputs)
    ]
    made = helper.make_graph(nodes, "by hand", *described, list(weights))
    return helper.make_model(made, ir_version=10, producer_name="by hand", **MACHINE)


def by_hand():
    """Give the models that no converter made."""
    kind, words = TensorProto.FLOAT, TensorProto.STRING
    sums = graph(
        [
            helper.make_node("ReduceSum", ["pair", "axis"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "factor"], ["product"]),
        ],
        [("pair", kind, [None, 2]), ("factor", kind, [None])],
        [("sum", kind, [None]), ("product", kind, [None])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    added = graph(
        [helper.make_node("Add", ["hour", "day"], ["both"])],
        [("hour", kind, [None]), ("day", kind, [None])],
        [("both", kind, [None])],
    )
    codes = {"keys_strings": ["AA", "UA"], "values_floats": [1.0, 2.0], "default_float": -1.0}
    coded = graph(
        [
            helper.make_node("LabelEncoder", ["carrier"], ["code"], domain="ai.onnx.ml", **codes),
            helper.make_node("Add", ["code", "distance"], ["far"]),
        ],
        [("carrier", words, [None]), ("distance", kind, [None])],
        [("code", kind, [None]), ("far", kind, [None])],
    )
    weight = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32).reshape(3, 1), "weight")
    weighed = graph(
        [helper.make_node("MatMul", ["rows", "weight"], ["weighed"])],
        [("rows", kind, [None, 3])],
        [("weighed", kind, [None, 1])],
        [weight],
    )
    centred = graph(
        [
            helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["rows", "mean"], ["centred"]),
        ],
        [("rows", kind, [None, 3])],
        [("centred", kind, [None, 3])],
    )
    centred.producer_name = "skl2onnx"
    return sums, added, coded, weighed, centred


def save(root: Path) -> None:
    """Save every model, and write down what MLflow's server answers, if it does."""
    expected = {}

    def keep(name, model, signature, payload, **options):
        path = str(root / name)
        mlflow.onnx.save_model(
            model, path, signature=signature, pip_requirements=["onnxruntime"], **options
        )
        loaded = mlflow.pyfunc.load_model(path)
        schema = loaded.metadata.get_input_schema()
        answer = None
        try:
            found = invocations(json.dumps(payload), "application/json", loaded, schema)
            answer = json.loads(found.response)["predictions"] if found.status == 200 else None
        except Exception as error:  # noqa: BLE001  # However it fails.
            logging.getLogger(__name__).info("%s: %r", name, error)
        expected[name] = {"payload": payload, "predictions": answer}

    numbers = infer_signature(FRAME, LABELS)
    matrix = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 3))]))
    split = {"dataframe_split": FRAME.head(4).to_dict(orient="split")}
    lists = {"inputs": FRAME.head(4).to_numpy().tolist()}
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(FRAME.to_numpy(), LABELS)
    plain = {"options": {"zipmap": False}}
    keep("frame", to_onnx(pipeline, ROWS[:1]), numbers, split)
    keep("matrix", to_onnx(pipeline, ROWS[:1], **plain), matrix, lists)
    keep("flat", to_onnx(pipeline, ROWS[:1], **plain), numbers, split)
    keep("unsigned", to_onnx(pipeline, ROWS[:1], **plain), None, lists)

    encoded = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["carrier"]), (StandardScaler(), ["distance"])
        ),
        GradientBoostingClassifier(n_estimators=5),
    ).fit(TEXT, LABELS)
    named = tensors(carrier=("str", -1, 1), distance=("float32", -1, 1))
    columns = {"inputs": {"carrier": [["AA"], ["??"]], "distance": [[3.0], [40.5]]}}
    records = {"dataframe_records": [{"carrier": "AA", "distance": 3.0}]}
    converted = to_onnx(encoded, TEXT.head(1).astype({"distance": np.float32}), **plain)
    keep("encoded", converted, named, columns)
    keep("encoded_frame", converted, infer_signature(TEXT, LABELS), records)

    trees = xgboost.XGBClassifier(n_estimators=3, max_depth=2).fit(FRAME.to_numpy(), LABELS)
    boosted = convert_xgboost(trees, initial_types=[("rows", FloatTensorType([None, 3]))])
    keep(
        "boosted", boosted, tensors(rows=("float32", -1, 3)), {"inputs": {"rows": lists["inputs"]}}
    )

    sums, added, coded, weighed, centred = by_hand()
    pairs = {"inputs": {"pair": [[1.0, 2.0], [3.0, 4.5]], "factor": [2.0, 0.5]}}
    keep(
        "sums",
        sums,
        tensors(pair=("float32", -1, 2), factor=("float32", -1)),
        pairs,
        onnx_session_options={
            "execution_mode": "parallel",
            "graph_optimization_level": 1,
            "intra_op_num_threads": 9,
            "extra_session_config": {"session.intra_op.allow_spinning": "0"},
        },
        onnx_execution_providers=[("CUDAExecutionProvider", {"device_id": 0})],
    )
    keep("columns", added, infer_signature(FRAME[["day", "hour"]]), split)
    keep(
        "whole",
        added,
        infer_signature(FRAME[["hour", "late"]].rename(columns={"late": "day"})),
        {"dataframe_records": [{"hour": 1.0, "day": 2}]},
    )
    keep(
        "words",
        coded,
        tensors(carrier=("str", -1), distance=("float32", -1)),
        {"inputs": {"carrier": ["AA", "DL"], "distance": [1.0, 2.5]}},
    )
    keep("weighed", weighed, numbers, split, size_threshold=0)
    keep("centred", centred, matrix, lists)
    (root / "expected.json").write_text(json.dumps(expected))


save(Path(sys.argv[1]))
