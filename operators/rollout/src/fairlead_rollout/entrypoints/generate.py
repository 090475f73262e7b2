"""`fairlead generate`: files of the repository that are made from another one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fairlead_rollout.adapters.crd import build_crd
from fairlead_rollout.adapters.schema import served_model_schema

ROOT = Path(__file__).parents[5]
REFERENCE = Path("docs/reference/served-model.md")
CRD = Path("charts/fairlead/files/crd.yaml")


def run_generate(*, check: bool) -> int:
    """Write the generated files, or say which are out of date.

    Args:
        check: Change nothing; fail if a file differs.
    """
    stale = [path for path, text in _files().items() if _differs(ROOT / path, text)]
    if check:
        for path in stale:
            print(f"{path} is out of date; run 'make generate'")
        return 1 if stale else 0
    for path in stale:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(_files()[path], "utf-8")
        print(f"wrote {path}")
    return 0


def _differs(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text("utf-8") != text


def _files() -> Mapping[Path, str]:
    return {REFERENCE: _reference(served_model_schema()), CRD: _crd()}


def _crd() -> str:
    head = "# Generated from the ServedModel's schema by `make generate`.\n"
    return head + yaml.safe_dump(build_crd(), sort_keys=False, width=1_000, allow_unicode=True)


def _reference(schema: Mapping[str, Any]) -> str:
    lines = [
        "# ServedModel",
        "",
        "<!-- Generated from the schema by `make generate`. -->",
        "",
        schema["description"],
        "",
        "| field | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for path, field in _fields(schema, schema, ""):
        default = f"`{field['default']}`" if "default" in field else ""
        lines.append(f"| `{path}` | {_type(field)} | {default} | {field.get('description', '')} |")
    return "\n".join(lines) + "\n"


def _fields(
    root: Mapping[str, Any], schema: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, part in schema.get("properties", {}).items():
        ref = part.get("$ref", "").removeprefix("#/$defs/")
        field = {**root["$defs"].get(ref, {}), **part}
        here = f"{path}.{name}" if path else name
        yield here, field
        yield from _fields(root, field, here)
        yield from _fields(root, field.get("items", {}), here + "[]")


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    return str(field.get("type", "object"))
