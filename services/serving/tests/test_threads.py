"""How many threads a prediction may use: what the limit on processor time leaves."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from fairlead_serving.adapters.cgroup import read_limits
from fairlead_serving.domain.threads import CpuLimit, threads_for
from fairlead_serving.entrypoints.cli import main

PERIOD = 100_000
PROCESSORS = len(os.sched_getaffinity(0))
HERE = threads_for(read_limits(), PROCESSORS)


@pytest.mark.parametrize(
    ("quotas", "processors", "threads"),
    [
        pytest.param([], 64, 1, id="no limit"),
        pytest.param([50_000], 64, 1, id="half a core"),
        pytest.param([100_000], 64, 1, id="a core"),
        pytest.param([250_000], 64, 2, id="two and a half"),
        pytest.param([800_000], 64, 8, id="eight"),
        pytest.param([800_000], 4, 4, id="fewer processors"),
        pytest.param([800_000, 200_000, 400_000], 64, 2, id="a smaller one around it"),
    ],
)
def test_threads_are_the_whole_cores_of_the_limit(
    quotas: list[int], processors: int, threads: int
) -> None:
    """At least one, and no more than there are processors; one where there is no limit."""
    limits = [CpuLimit(quota, PERIOD) for quota in quotas]
    assert threads_for(limits, processors) == threads


V1 = "4:memory:/pod/box\n3:cpu,cpuacct:/pod/box\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        pytest.param("0::/\n", {"cpu.max": "150000 100000"}, [(150_000, PERIOD)], id="container"),
        pytest.param("0::/\n", {"cpu.max": "max 100000"}, [], id="no limit"),
        pytest.param(
            "0::/a.slice/b.service\n",
            {"a.slice/cpu.max": "400000 100000", "a.slice/b.service/cpu.max": "50000 25000"},
            [(50_000, 25_000), (400_000, PERIOD)],
            id="service",
        ),
        pytest.param(
            "0::/../other\n", {"cpu.max": "200000 100000"}, [(200_000, PERIOD)], id="outside"
        ),
        pytest.param(
            V1,
            {"cpu/pod/box/cpu.cfs_quota_us": "300000", "cpu/pod/box/cpu.cfs_period_us": "100000"},
            [(300_000, PERIOD)],
            id="version 1",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            [(300_000, PERIOD)],
            id="version 1, container",
        ),
        pytest.param(
            V1,
            {"cpu/pod/box/cpu.cfs_quota_us": "-1", "cpu/pod/box/cpu.cfs_period_us": "100000"},
            [],
            id="version 1, no limit",
        ),
        pytest.param(None, {}, [], id="another system"),
    ],
)
def test_limits_are_read_from_control_groups(
    groups: str | None, files: Mapping[str, str], limits: list[tuple[int, int]], tmp_path: Path
) -> None:
    """The process's own group and all around it; a container's root is its own group."""
    if groups is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert read_limits(tmp_path) == limits


def test_libraries_take_the_threads_of_the_command(
    models: Path, expected: Mapping[str, Any], serve: Callable[..., Any]
) -> None:
    """Their pools are as wide as `--threads`; by itself that is what the limit leaves."""
    rows = expected["booster"]["payload"]["dataframe_split"]
    many = {"dataframe_split": {"columns": rows["columns"], "data": rows["data"] * 400}}
    found = {}
    for threads in ("auto", str(HERE), str(HERE + 2)):
        arguments = ("--threads", threads, "--predictor", "exact")
        with serve(models / "booster", *arguments) as server:
            server.wait_ready()
            assert server.predict(many).status_code == 200
            found[threads] = psutil.Process(server.process.pid).num_threads()
    assert found["auto"] == found[str(HERE)]
    assert found[str(HERE + 2)] >= found["auto"] + 2


@pytest.mark.parametrize(
    ("threads", "variables", "widths"),
    [
        pytest.param("1", {}, (1, 1), id="one"),
        pytest.param("2", {}, (2, 2), id="two"),
        pytest.param("auto", {}, (HERE, HERE), id="the limit"),
        pytest.param("2", {"OMP_NUM_THREADS": "1"}, (2, 1), id="OpenMP's own"),
        pytest.param("2", {"OPENBLAS_NUM_THREADS": "1"}, (1, 2), id="OpenBLAS's own"),
    ],
)
def test_pools_of_the_process_are_as_wide_as_it_was_told(
    threads: str,
    variables: Mapping[str, str],
    widths: tuple[int, int],
    models: Path,
    serve: Callable[..., Any],
) -> None:
    """BLAS and OpenMP follow the option, unless the environment has the library's own variable."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    clean = dict.fromkeys(names) | dict(variables)
    with serve(models / "pools", "--threads", threads, environment=clean) as server:
        server.wait_ready()
        record = {"hour": 1.5, "day": 2, "late": 0}
        answer = server.predict({"dataframe_records": [record]}).json()["predictions"]
    found: dict[str, set[int]] = {}
    for api, width in json.loads(answer[0]):
        found.setdefault(api, set()).add(width)
    blas, openmp = widths
    assert found == {"openblas": {min(blas, PROCESSORS)}, "openmp": {openmp}}


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5"])
def test_threads_are_a_number_or_auto(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is wrong use, and the message says what is right."""
    with pytest.raises(SystemExit) as caught:
        main(["--model", "x", "--port", "0", "--threads", given])
    assert caught.value.code == 2
    assert "--threads" in capsys.readouterr().err
