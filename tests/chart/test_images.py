"""What holds for every image: how it is built, and that its pins are those of everywhere else."""

import fnmatch
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = ROOT / "requirements/images"
DOCKERFILES = {
    "controller": "operators/rollout/Dockerfile",
    "gateway": "services/gateway/Dockerfile",
    "experiments": "services/experiments/Dockerfile",
    "serving": "services/serving/Dockerfile",
    "training": "services/training/Dockerfile",
    "mlflow": "images/mlflow/Dockerfile",
    "load": "tests/load/Dockerfile",
}
# The package and its extras that each pinned file is made from.
PACKAGES = {
    "controller": ("operators/rollout", ["kubernetes"]),
    "gateway": ("services/gateway", ["kubernetes"]),
    "experiments": ("services/experiments", ["postgresql"]),
    "serving-sklearn": ("services/serving", []),
    "serving-xgboost": ("services/serving", ["xgboost"]),
    "serving-full": ("services/serving", ["xgboost", "pyfunc"]),
    "training": ("services/training", []),
}
# What a pinned file is evaluated for.
IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.2",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
}

each_dockerfile = pytest.mark.parametrize(
    ("name", "path"), DOCKERFILES.items(), ids=list(DOCKERFILES)
)
each_pin_file = pytest.mark.parametrize("name", sorted(path.stem for path in PINS.glob("*.txt")))


def instructions(path: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions: ("COPY", "--from=envoy /a /b")."""
    text = re.sub(r"^#.*\n", "", (ROOT / path).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line]


def last_stage(path: str) -> list[tuple[str, str]]:
    """The instructions of the stage that becomes the image."""
    every = instructions(path)
    start = max(index for index, (word, _) in enumerate(every) if word == "FROM")
    return every[start + 1 :]


def sources(path: str) -> Iterator[str]:
    """What a Dockerfile copies from the repository."""
    for word, rest in instructions(path):
        if word == "COPY" and not rest.startswith("--from"):
            yield from rest.split()[:-1]


def pins(path: Path) -> dict[str, tuple[str, int]]:
    """Pinned version and number of hashes by package, as one image has them."""
    found = {}
    for block in re.split(r"\n(?=[a-zA-Z])", path.read_text()):
        if block.startswith("#"):
            continue
        requirement = Requirement(block.split("\\")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(IMAGE):
            version = str(requirement.specifier).removeprefix("==")
            found[canonicalize_name(requirement.name)] = (version, block.count("--hash=sha256:"))
    return found


def is_sent(path: str, dockerfile: str = "") -> bool:
    """Whether .dockerignore, or the Dockerfile's own, lets a path through to the builder."""
    own = ROOT / f"{dockerfile}.dockerignore"
    ignored = own if own.exists() else ROOT / ".dockerignore"
    allowed = [line[1:] for line in ignored.read_text().splitlines() if line[:1] == "!"]
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in allowed)


@each_dockerfile
def test_an_image_runs_as_nobody_without_a_shell(name: str, path: str) -> None:
    """The last stage ends as user 65532, and its command is a program, not a shell line."""
    stage = dict(last_stage(path))
    assert stage["USER"] == "65532:65532"
    assert len(json.loads(stage["ENTRYPOINT"])) == 1


@each_dockerfile
def test_an_image_says_what_it_is(name: str, path: str) -> None:
    """The labels name title, description, licence, version and revision."""
    labels = " ".join(rest for word, rest in last_stage(path) if word == "LABEL")
    assert f'org.opencontainers.image.title="fairlead/{name}"' in labels
    for label in ("description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels


@each_dockerfile
def test_an_image_holds_only_what_its_stages_hand_over(name: str, path: str) -> None:
    """The last stage copies from other stages alone and installs nothing; the load is no package."""
    stage = last_stage(path)
    if name == "load":
        stage = [each for each in stage if not each[1].startswith("tests/load/")]
    assert all(rest.startswith("--from=") for word, rest in stage if word in {"COPY", "ADD"})
    assert not [rest for word, rest in stage if word == "RUN" and " install" in rest]


@each_dockerfile
def test_what_a_dockerfile_copies_is_there_and_sent(name: str, path: str) -> None:
    """Every source of a COPY exists, for each flavor, and .dockerignore lets it through."""
    for source in sources(path):
        flavors = ["sklearn", "xgboost", "full"] if "${FLAVOR}" in source else [""]
        for each in (source.replace("${FLAVOR}", flavor) for flavor in flavors):
            assert (ROOT / each).exists(), f"{path} copies {each}, which does not exist"
            assert is_sent(each, path), f".dockerignore keeps {each} back"


def test_nothing_else_is_sent_to_the_builder() -> None:
    """What no Dockerfile copies is not sent: no tests, no charts, no local state."""
    for path in ("README.md", "tests", "charts", ".git", ".fairlead", "services/serving/tests"):
        assert not is_sent(path)


@each_dockerfile
def test_base_images_have_a_version_and_a_name_to_replace(name: str, path: str) -> None:
    """Every base is a build argument with a whole name and a version tag."""
    defaults = dict(
        rest.split("=", 1) for word, rest in instructions(path) if "=" in rest and word == "ARG"
    )
    for word, rest in instructions(path):
        if word == "FROM":
            base = defaults[re.fullmatch(r"\$\{(\w+)\}( AS \w+)?", rest)[1]]
            assert re.fullmatch(r"docker\.io/[a-z/]+:[a-z0-9.-]*\d+\.\d+[a-z0-9.-]*", base), base


@each_pin_file
def test_every_pin_has_a_hash(name: str) -> None:
    """No package of an image can be swapped on its way."""
    assert [
        package for package, (_, hashes) in pins(PINS / f"{name}.txt").items() if not hashes
    ] == []


@pytest.mark.parametrize(("name", "package", "extras"), [(n, *p) for n, p in PACKAGES.items()])
def test_an_image_holds_what_its_package_asks_for(
    name: str, package: str, extras: list[str]
) -> None:
    """Each requirement of the package and of its chosen extras is pinned within its bounds."""
    project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    pinned = pins(PINS / f"{name}.txt")
    for requirement in map(Requirement, wanted):
        version, _ = pinned[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"make requirements: {requirement} in {name}.txt"


@pytest.mark.parametrize("name", PACKAGES)
def test_an_image_and_one_machine_have_the_same_versions(name: str) -> None:
    """What runs in the cluster was tested on one machine, to the version."""
    local = pins(ROOT / "requirements/local.txt")
    image = pins(PINS / f"{name}.txt")
    differing = {
        p: (v, local[p][0]) for p, (v, _) in image.items() if p in local and local[p][0] != v
    }
    assert differing == {}, "make requirements"


def test_mlflow_is_one_version_everywhere() -> None:
    """The server in the cluster is the MLflow that the clients were tested with."""
    local, image = pins(ROOT / "requirements/local.txt"), pins(PINS / "mlflow.txt")
    assert image["mlflow"] == local["mlflow"]
    chart = (ROOT / "charts/mlflow/Chart.yaml").read_text()
    assert f'appVersion: "{image["mlflow"][0]}"' in chart


def test_the_controller_and_the_gateway_bring_no_mlflow() -> None:
    """They talk to MLflow by HTTP; its half gigabyte stays out of their images."""
    for name in ("controller", "gateway", "experiments", "serving-sklearn", "serving-xgboost"):
        assert "mlflow" not in pins(PINS / f"{name}.txt")


def test_make_images_names_every_image_and_its_flavor() -> None:
    """`make images` hands each Dockerfile with registry, tag and flavor to whatever BUILDER is."""
    done = subprocess.run(
        [
            "make",
            "--silent",
            "images",
            "BUILDER=echo built",
            "REGISTRY=registry.example.com/team",
            "TAG=1.2.3",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    built = [line for line in done.stdout.splitlines() if line.startswith("built ")]
    assert len(built) == len(DOCKERFILES) + 2
    for name, path in DOCKERFILES.items():
        assert [
            line
            for line in built
            if f"/team/fairlead/{name}:1.2.3" in line and f"-f {path} " in line
        ]
    full = next(
        line
        for line in built
        if "-t registry.example.com/team/fairlead/serving:1.2.3-full " in line
    )
    assert "--build-arg FLAVOR=full" in full
    assert "--build-arg VERSION=1.2.3" in full
