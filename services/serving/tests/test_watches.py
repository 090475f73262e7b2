"""The access log and the sample of payloads."""

import asyncio
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_asgi import Client

from fairlead_serving.adapters.payloads import Payload, PayloadLog
from fairlead_serving.domain.sampling import is_sampled

BODY = {"inputs": {"hour": [1.5]}}
BODY_JSON = json.dumps(BODY).encode()
JSON = {"content-type": "application/json"}


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_larger_share_holds_the_smaller_one(key: str, one: float, other: float) -> None:
    """A key of a small share is in every larger one."""
    small, large = sorted((one, other))
    assert is_sampled(key, large) or not is_sampled(key, small)


def test_share_is_of_the_keys() -> None:
    """A share of 10 % is a tenth of many keys; 0 is none and 1 is all."""
    keys = [f"unit-{number}" for number in range(20_000)]
    assert 1_850 < sum(is_sampled(key, 0.1) for key in keys) < 2_150
    assert not any(is_sampled(key, 0.0) for key in keys)
    assert all(is_sampled(key, 1.0) for key in keys)


def test_access_log_names_the_request_and_not_its_values(caplog: pytest.LogCaptureFixture) -> None:
    """A logged request has its path, status, time, sizes and inference id as fields."""
    client = Client(access_log=1.0)
    with caplog.at_level(logging.INFO, "fairlead_serving.access"):
        client.post(BODY, {**JSON, "x-inference-id": "i-1"})
    (record,) = [one for one in caplog.records if one.name == "fairlead_serving.access"]
    fields = vars(record)
    assert (fields["path"], fields["status"], fields["inference_id"]) == (
        "/invocations",
        200,
        "i-1",
    )
    assert fields["request_bytes"] == len(json.dumps(BODY))
    assert fields["seconds"] > 0
    assert "1.5" not in record.getMessage()


def test_access_log_chooses_by_inference_id(caplog: pytest.LogCaptureFixture) -> None:
    """Which requests are logged is told by their ids alone; failures always are."""
    ids = [f"i-{number}" for number in range(60)]
    good, bad = Client(access_log=0.3), Client(OSError("secret"), access_log=1e-9)
    with caplog.at_level(logging.INFO, "fairlead_serving.access"):
        for one in ids:
            good.post(BODY, {**JSON, "x-inference-id": one})
        bad.post(BODY)
    logged = [vars(one) for one in caplog.records if one.name == "fairlead_serving.access"]
    assert [one["inference_id"] for one in logged[:-1]] == [
        one for one in ids if is_sampled(one, 0.3)
    ]
    assert logged[-1]["status"] == 500


def _post_all(client: Client, requests: list[tuple[bytes, dict[str, str]]]) -> None:
    async def go() -> None:
        async with client.connected() as http:
            for content, headers in requests:
                await http.post("/invocations", content=content, headers=headers)

    asyncio.run(go())


def _lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_payloads_of_a_unit_are_all_kept_or_none(tmp_path: Path) -> None:
    """A unit's requests are kept together, with what was sent and what was answered."""
    client = Client([2.5], payload_folder=tmp_path, payload_share=0.5, payload_key="X-User")
    units = [f"u{number}" for number in range(20)] * 2
    _post_all(client, [(BODY_JSON, {**JSON, "x-user": unit}) for unit in units])
    kept = _lines(tmp_path)
    assert [one["unit"] for one in kept] == [unit for unit in units if is_sampled(unit, 0.5)]
    assert 0 < len(kept) < len(units)
    assert kept[0]["request"] == BODY
    assert kept[0]["response"] == {"predictions": [2.5]}
    assert (kept[0]["model"], kept[0]["version"], kept[0]["status"]) == ("flights", "4", 200)


def test_payloads_that_are_no_json_are_kept_too(tmp_path: Path) -> None:
    """CSV is kept as text, and bytes in base64; what was refused is kept as it came."""
    client = Client(payload_folder=tmp_path)
    _post_all(client, [(b"hour\n1.5\n", {"content-type": "text/csv"}), (b"\xff\xfe", JSON)])
    first, second = _lines(tmp_path)
    assert first["request"] == "hour\n1.5\n"
    assert (second["requestBase64"], second["status"]) == ("//4=", 400)


def _payload(size: int, number: int = 0) -> Payload:
    return Payload(float(number), {"number": number}, {"request": b"x" * size})


def test_oldest_payloads_are_deleted(tmp_path: Path) -> None:
    """The files together stay below what is allowed, and the newest payloads are there."""
    log = PayloadLog(tmp_path, most_bytes=80_000)
    for number in range(300):
        log.add(_payload(1_000, number))
    log.close()
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert sum(sizes) < 90_000
    numbers = [one["number"] for one in _lines(tmp_path)]
    assert numbers == list(range(300))[-len(numbers) :]
    assert len(numbers) > 50
    assert log.counts == {"kept": 300, "dropped": 0}


def test_payloads_of_several_starts_share_the_limit(tmp_path: Path) -> None:
    """A process that is started again leaves what is there, and counts it in."""
    for number in range(12):
        log = PayloadLog(tmp_path, most_bytes=80_000)
        log.add(_payload(1_000, number))
        log.close()
    assert [one["number"] for one in _lines(tmp_path)] == list(range(4, 12))


def test_payloads_that_cannot_be_written_are_counted(tmp_path: Path) -> None:
    """A disk that is gone costs payloads, not requests; when it is back they are kept again."""
    folder = tmp_path / "payloads"
    log = PayloadLog(folder, most_bytes=8)  # A new file for each payload.
    log.add(_payload(1_000, 1))
    _until(log, kept=1)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    log.add(_payload(1_000, 2))
    log.add(_payload(1_000, 3))
    _until(log, dropped=2)
    folder.mkdir()
    log.add(_payload(1_000, 4))
    log.close()
    assert log.counts == {"kept": 2, "dropped": 2}
    assert [one["number"] for one in _lines(folder)] == [4]


def test_backlog_of_payloads_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow disk cannot take is dropped and counted, and memory stays as it is."""
    slow = threading.Event()
    log = PayloadLog(tmp_path, most_bytes=2**40)
    monkeypatch.setattr(log, "_write", lambda _: slow.wait(10))
    log.add(_payload(1))
    for _ in range(5):
        log.add(_payload(30 * 1024 * 1024))
    assert log.counts["dropped"] == 3
    slow.set()
    log.close()
    assert log.counts == {"kept": 3, "dropped": 3}


def _until(log: PayloadLog, **wanted: int) -> None:
    async def wait() -> None:
        async with asyncio.timeout(10):
            while not wanted.items() <= log.counts.items():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    asyncio.run(wait())


def test_payload_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Payloads may be personal data, so nobody else on the machine reads them."""
    PayloadLog(tmp_path / "new", most_bytes=1_000).close()
    (file,) = (tmp_path / "new").iterdir()
    assert (tmp_path / "new").stat().st_mode & 0o77 == 0
    assert file.stat().st_mode & 0o77 == 0
