"""Generates a client from a served document, uses it, and prints what it got as JSON.

Runs in an environment of its own (`make .venv-clients/.installed`), as `python generated_client.py
URL FOLDER`. The model has the columns hour (double), day and late (long), and one output.
"""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path


def generate(url, folder):
    """Have openapi-python-client write a package."""
    tool = Path(sys.executable).with_name("openapi-python-client")
    config = folder / "config.json"
    config.write_text(json.dumps({"post_hooks": []}))  # They only format what nobody reads.
    command = [tool, "generate", "--url", f"{url}/openapi.json", "--meta", "none"]
    command += ["--output-path", folder / "flights", "--config", config]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sys.path.insert(0, str(folder))
    return done.stdout + done.stderr


def use(url):
    """Predict by both protocols, make a mistake in each, and ask what is served."""
    client = import_module("flights").Client(base_url=url)
    models = import_module("flights.models")
    mlflow = import_module("flights.api.mlflow.predict")
    infer = import_module("flights.api.inference.infer")
    metadata = import_module("flights.api.inference.get_model")

    records = [models.Record(1.5, 2, 0), models.Record(2.5, 3, 1)]
    good = mlflow.sync_detailed(client=client, body=models.DataframeRecords(records))
    wrong = models.DataframeRecords([models.Record(1.5, 2, None)])
    bad = mlflow.sync_detailed(client=client, body=wrong)

    double, long = models.InferInput1Datatype.FP64, models.InferInput2Datatype.INT64
    inputs = [
        models.InferInput1("hour", [2], double, [1.5, 2.5]),
        models.InferInput2("day", [2], long, [2, 3]),
        models.InferInput3("late", [2], models.InferInput3Datatype.INT64, [0, 1]),
    ]
    inferred = infer.sync_detailed(client=client, body=models.InferRequest(inputs, id="7"))
    lacking = infer.sync_detailed(client=client, body=models.InferRequest(inputs[:2]))
    described = metadata.sync(client=client)
    return {
        "types": [type(one.parsed).__name__ for one in (good, bad, inferred, lacking)],
        "predictions": good.parsed.predictions,
        "refused": [bad.status_code, bad.parsed.error_code, bad.parsed.field],
        "outputs": [[one.name, one.data] for one in inferred.parsed.outputs],
        "id": inferred.parsed.id,
        "lacking": lacking.parsed.error,
        "inputs": [one.name for one in described.inputs],
    }


def main(url, folder):
    """Generate, then use."""
    said = generate(url, Path(folder))
    sys.stdout.write(json.dumps({"generator": said, **use(url)}))


main(*sys.argv[1:])
