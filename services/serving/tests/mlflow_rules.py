"""MLflow's own scoring server as an oracle: says what reaches a model, or that it is refused.

Run as a process, as importing MLflow is slow and warns. Reads one JSON document a line from
stdin, {"inputs": [...], "params": [...], "type": "application/json", "body": "..."} with the
signature as MLflow writes it, and answers each with a line. With `--over-http` each goes through
MLflow's whole application, else through the function behind its route.
"""

import asyncio
import json
import logging
import sys
import tempfile
from pathlib import Path

import httpx
import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.pyfunc.scoring_server import init, invocations
from mlflow.types import ParamSchema, Schema
from plainly import plainly, types_of


class Echo(mlflow.pyfunc.PythonModel):
    """Answers with what reaches it."""

    def predict(self, context, model_input, params=None):
        """Answer."""
        answer = {"input": plainly(model_input), "types": types_of(model_input), "params": params}
        return [json.dumps(answer, default=str)]


def load():
    """Save and load a model, whose signature each case replaces."""
    path = str(Path(tempfile.mkdtemp()) / "model")
    mlflow.pyfunc.save_model(path, python_model=Echo(), pip_requirements=["mlflow"])
    return mlflow.pyfunc.load_model(path)


def ask(model, case):
    """Give what reaches the model, or "refused"."""
    schema = model.metadata.get_input_schema()
    try:
        answer = invocations(case["body"].encode(), case["type"], model, schema)
        return json.loads(json.loads(answer.response)["predictions"][0])
    except Exception:  # noqa: BLE001  # However it refuses.
        return "refused"


def ask_over_http(model, case):
    """Give what reaches the model through MLflow's application, or "refused"."""

    async def post():
        transport = httpx.ASGITransport(init(model), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://mlflow") as client:
            headers = {"content-type": case["type"]}
            return await client.post("/invocations", content=case["body"], headers=headers)

    answer = asyncio.run(post())
    return json.loads(answer.json()["predictions"][0]) if answer.is_success else "refused"


def main():
    """Answer each case until there are no more."""
    logging.disable(logging.CRITICAL)
    model = load()
    asked = ask_over_http if "--over-http" in sys.argv else ask
    for line in sys.stdin:
        case = json.loads(line)
        model.metadata.signature = ModelSignature(
            Schema.from_json(json.dumps(case["inputs"])) if case["inputs"] else None,
            params=ParamSchema.from_json(json.dumps(case["params"])) if case["params"] else None,
        )
        sys.stdout.write(json.dumps(asked(model, case)) + "\n")
        sys.stdout.flush()


main()
