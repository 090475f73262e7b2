"""What a model needs, what is installed, and installing the difference."""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fairlead_serving.adapters.environment import read_environment
from fairlead_serving.app.ports import ModelFolder
from fairlead_serving.domain.environment import say_unmet
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError
from fairlead_serving.entrypoints.cli import main
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.wiring import LayerNeededError, fetch_and_load

NOBODY = "http://127.0.0.1:9"


def _unmet(folder: Path, *, without_mlflow: bool = True) -> list[str]:
    read = read_environment(ModelFolder(path=folder, flavors={}), without_mlflow=without_mlflow)
    return [f"{need} ({need.installed or 'nothing'})" for need in read.unmet]


@pytest.mark.parametrize(
    ("line", "unmet"),
    [
        pytest.param("packaging", [], id="any version"),
        pytest.param("PACKAGING>=1  # a comment", [], id="case and comment"),
        pytest.param("mlflow==0.1", [], id="MLflow itself"),
        pytest.param("xgboost>=1", [], id="a stand-in"),
        pytest.param("nope; python_version < '3'", [], id="another Python"),
        pytest.param("-r more.txt", [], id="an option"),
        pytest.param("./local.whl", [], id="a path"),
        pytest.param("???", [], id="unreadable"),
        pytest.param("nope==1", ["nope==1 (nothing)"], id="missing"),
        pytest.param("nope==1 \\\n  --hash=sha256:00", ["nope==1 (nothing)"], id="with a hash"),
        pytest.param("nope[a]>1", ["nope[a]>1 (nothing)"], id="with an extra"),
        pytest.param("nope @ https://me:secret@x.test/a.whl", ["nope (nothing)"], id="an address"),
    ],
)
def test_requirements_are_compared(line: str, unmet: list[str], tmp_path: Path) -> None:
    """Each requirement is compared with what is installed; what is no name is left out."""
    (tmp_path / "requirements.txt").write_text(f"# made by MLflow\n{line}\n")
    assert _unmet(tmp_path) == unmet


def test_mlflow_counts_for_a_pyfunc_model(tmp_path: Path) -> None:
    """A model that MLflow loads needs the MLflow it asks for."""
    (tmp_path / "requirements.txt").write_text("mlflow==0.1\n")
    (phrase,) = _unmet(tmp_path, without_mlflow=False)
    assert phrase.startswith("mlflow==0.1 (")


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy a model and give it other requirements."""

    def make(name: str, *requirements: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(models / name, folder)
        if requirements:
            (folder / "requirements.txt").write_text("\n".join(requirements))
        return folder

    return make


def _save_with(folder: Path, python: str) -> None:
    here = ".".join(map(str, sys.version_info[:3]))
    for name in ("MLmodel", "python_env.yaml"):
        text = (folder / name).read_text()
        assert here in text
        (folder / name).write_text(text.replace(here, python))


def test_model_with_bytecode_of_another_python_is_refused(copy: Callable[..., Path]) -> None:
    """A class that came with the model, compiled by another minor version, is not run."""
    folder = copy("plain")
    _save_with(folder, "3.9.1")
    with pytest.raises(CannotLoadError, match=r"Python 3\.9, which compiled.*environment ignore"):
        fetch_and_load(Settings(model=str(folder)))
    fetch_and_load(Settings(model=str(folder), environment="ignore"))


def test_model_without_bytecode_of_another_python_only_warns(
    copy: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A pickle of a library's own classes is data, which another minor version mostly reads."""
    folder = copy("cloudpickle")
    _save_with(folder, "3.9.1")
    fetch_and_load(Settings(model=str(folder)))
    assert "saved by Python 3.9.1" in caplog.text


def test_python_is_read_where_the_flavor_does_not_say_it(tmp_path: Path) -> None:
    """`python_env.yaml` says it too."""
    (tmp_path / "python_env.yaml").write_text("python: 3.8.2\n")
    read = read_environment(ModelFolder(path=tmp_path, flavors={}), without_mlflow=True)
    assert read.made_with == "3.8.2"
    assert read.is_other_python
    assert say_unmet(read) == ""


def _check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_check_says_what_is_wanted_and_what_is_there(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of requirements, the flavor, and the verdict."""
    code, printed = _check(capsys, "--model", models / "booster")
    assert code == 0
    assert "xgboost" in printed
    assert "loaded as xgboost" in printed
    assert "It can be served." in printed


def test_check_gives_the_sentence_that_the_server_gives(
    models: Path, serve: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3 and the same reason, before anything is deployed."""
    log = tmp_path / "termination"
    with serve(models / "unmet", "--termination-log", str(log)) as server:
        assert server.wait_exit() == 3
    code, printed = _check(capsys, "--model", models / "unmet", "--json")
    document = json.loads(printed)
    assert code == 3
    assert document["reason"] == log.read_text().strip()
    assert document["requirements"][1] == {
        "name": "nobody-has-this",
        "wanted": "",
        "installed": None,
        "isMet": False,
    }


def test_check_loads_nothing(copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle is not opened: one that would fail changes nothing."""
    folder = copy("cloudpickle")
    (folder / "model.pkl").write_bytes(b"junk")
    code, _ = _check(capsys, "--model", folder)
    assert code == 0


def test_check_tells_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without MLmodel can never be served."""
    code, printed = _check(capsys, "--model", tmp_path)
    assert code == 3
    assert "MLmodel" in printed


def test_check_tells_what_cannot_be_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4: trying again may help."""
    options = ("--tracking-uri", NOBODY, "--cache", tmp_path, "--json")
    code, printed = _check(capsys, "--model", "models:/flights/1", *options)
    assert code == 4
    assert json.loads(printed)["canBeServed"] is False


def _wheel(folder: Path, name: str, version: str, code: str, *needs: str) -> str:
    """Build a wheel; give the lines that install from its folder alone."""
    folder.mkdir(exist_ok=True)
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{module}.py": code,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return f"--no-index\n--find-links {folder}"


PREDICTING = "import another\n\ndef predict(data):\n    return another.FACTOR * data['day']\n"


@pytest.fixture
def wheels(tmp_path: Path) -> str:
    """Build what the model `importing` lacks; it needs one that is missing and one that is not."""
    _wheel(tmp_path / "wheels", "another", "1.0", "FACTOR = 10\n")
    return _wheel(
        tmp_path / "wheels", "no-such-module", "1.5", PREDICTING, "another==1.0", "packaging>=1"
    )


def _resolving(folder: Path, cache: Path) -> Settings:
    return Settings(model=str(folder), cache=cache, environment="resolve")


def _probe(url: str) -> int | None:
    """Ask whether it is ready; None for a connection that was taken just before the new start."""
    try:
        return httpx.get(f"{url}/readyz", timeout=60.0).status_code
    except httpx.RemoteProtocolError:
        return None


def test_difference_is_installed_and_served(
    copy: Callable[..., Path],
    wheels: str,
    serve: Callable[..., Any],
    wait: Callable[[Callable[[], bool]], None],
    tmp_path: Path,
) -> None:
    """A model whose module is missing is served, and no connection is refused on the way."""
    folder = copy("importing", wheels, "no-such-module==1.5")
    options = ("--environment", "resolve", "--cache", str(tmp_path / "cache"))
    row = {"dataframe_records": [{"hour": 1.0, "day": 2, "late": 0}]}
    with serve(folder, *options) as server:
        wait(lambda: server.status("/livez") == 200)
        codes = []
        while server.process.poll() is None and 200 not in codes:
            codes.append(_probe(server.url))
        assert 200 in codes
        assert set(codes) <= {503, 200, None}
        assert server.predict(row).json() == {"predictions": [20]}
    shutil.rmtree(tmp_path / "wheels")  # What was installed once is kept.
    with serve(folder, *options) as server:
        server.wait_ready()
        assert server.predict(row).json() == {"predictions": [20]}


def test_layer_holds_the_difference_and_nothing_else(
    copy: Callable[..., Path], wheels: str, tmp_path: Path
) -> None:
    """What is installed already is neither fetched nor copied, nor are leftovers kept."""
    folder = copy("importing", wheels, "no-such-module>=1")
    with pytest.raises(LayerNeededError) as first:
        fetch_and_load(_resolving(folder, tmp_path / "cache"))
    layer = first.value.layer
    names = {path.name for path in layer.iterdir() if path.suffix in {".py", ".dist-info"}}
    assert names == {
        *("another.py", "another-1.0.dist-info"),
        *("no_such_module.py", "no_such_module-1.5.dist-info"),
    }
    others = {path.suffix for path in layer.parent.iterdir()} - {"", ".lock"}
    assert others == set()
    stamp = layer.stat().st_mtime_ns
    with pytest.raises(LayerNeededError) as second:
        fetch_and_load(_resolving(folder, tmp_path / "cache"))
    assert (second.value.layer, layer.stat().st_mtime_ns) == (layer, stamp)


def test_check_installs_the_difference_too(
    copy: Callable[..., Path],
    wheels: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server that comes later finds the layer; the cache may be named from where one is."""
    copy("importing", wheels, "no-such-module==1.5")
    monkeypatch.chdir(tmp_path)
    options = ("--environment", "resolve", "--cache", "cache", "--json")
    code, printed = _check(capsys, "--model", "importing", *options)
    assert code == 0
    assert (Path(json.loads(printed)["layer"]) / "no_such_module.py").exists()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        pytest.param(("no-such-module==9",), "no-such-module==9", id="no such version"),
        pytest.param(("numpy==1.0",), "numpy>=", id="older than the server needs"),
        pytest.param(("broken==1",), "absent", id="a dependency that does not exist"),
        pytest.param(("packaging!=1", "clash==1"), "packaging", id="changes what is installed"),
        pytest.param(
            (f"no-such-module==1.5 --hash=sha256:{'0' * 64}",), "Hash mismatch", id="another hash"
        ),
    ],
)
def test_difference_that_can_never_be_installed_is_named(
    lines: tuple[str, ...], reason: str, copy: Callable[..., Path], wheels: str, tmp_path: Path
) -> None:
    """One sentence with the requirement and uv's own reason, and no layer."""
    _wheel(tmp_path / "wheels", "numpy", "1.0", "")
    _wheel(tmp_path / "wheels", "packaging", "1.0", "")
    _wheel(tmp_path / "wheels", "broken", "1", "", "absent")
    _wheel(tmp_path / "wheels", "clash", "1", "", "packaging==1.0")
    folder = copy("importing", wheels, *lines)
    with pytest.raises(CannotLoadError, match=reason) as caught:
        fetch_and_load(_resolving(folder, tmp_path / "cache"))
    assert f"requirements {lines[-1].partition(' ')[0]} cannot be installed" in str(caught.value)
    assert {path.suffix for path in (tmp_path / "cache" / "layers").iterdir()} == {".lock"}


def test_index_that_is_away_may_come_back(
    copy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told from what can never be installed, and no password is repeated."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    index = "--index-url http://me:secret@127.0.0.1:9/simple"
    folder = copy("importing", index, "no-such-module==1.5")
    with pytest.raises(CannotFetchError, match=r"no-such-module==1\.5.*127\.0\.0\.1:9") as caught:
        fetch_and_load(_resolving(folder, tmp_path / "cache"))
    assert "secret" not in str(caught.value)


def test_missing_uv_is_named(
    copy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without uv the sentence says which extra brings it."""
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotLoadError, match=r"fairlead-serving\[resolve\]"):
        fetch_and_load(_resolving(copy("unmet"), tmp_path / "cache"))


def test_layer_that_changes_nothing_ends_the_process(
    copy: Callable[..., Path], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """The command is not started again without end."""
    options = ("--environment", "resolve", "--cache", str(tmp_path / "cache"))
    variables = {"FAIRLEAD_LAYER": "elsewhere"}
    with serve(copy("unmet"), *options, environment=variables) as server:
        assert server.wait_exit() == 3
        assert "'elsewhere' does not change that" in server.log.read_text()


def test_password_of_mlflow_is_kept_from_what_builds_packages(
    copy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source distribution runs code of its own when it is built."""
    source = tmp_path / "spy-1"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "spying"\nbackend-path = ["."]\n'
        '[project]\nname = "spy"\nversion = "1"\n'
    )
    seen = tmp_path / "seen"
    (source / "spying.py").write_text(
        f"import os\nopen({str(seen)!r}, 'w').write(chr(10).join(os.environ))\nraise SystemExit(1)\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    folder = copy("importing", "--no-index", f"spy @ file://{source}")
    with pytest.raises(CannotLoadError, match="spy"):
        fetch_and_load(_resolving(folder, tmp_path / "cache"))
    assert "PATH" in seen.read_text().split()
    assert "MLFLOW_TRACKING_PASSWORD" not in seen.read_text()
