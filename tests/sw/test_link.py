# SPDX-License-Identifier: Apache-2.0
"""The serial link, against a model of the device that keeps its last reply."""

import random
import struct
import zlib

import pytest
from sparsemac import link
from sparsemac.errors import DeviceError, DeviceRestarted, LinkError, OutcomeUnknown
from sparsemac.link import (
    MAX_DATA_BYTES,
    MAX_FRAME_BYTES,
    LinkClient,
    LinkOp,
    LinkStatus,
    Reply,
    Request,
    cobs_decode,
    cobs_encode,
)
from support.link_model import FaultyLine, LinkModel, Rates

SEED = 7


@pytest.fixture
def rng():
    print(f"seed {SEED}")
    return random.Random(SEED)


def connect(rates=None, retries=12, **model):
    line = FaultyLine(LinkModel(**model), rates, SEED)
    client = LinkClient(line, timeout=0.01, retries=retries)
    client.hello()
    return client, line


# -- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frame", "coded"), [
    ("", "01"), ("00", "0101"), ("0000", "010101"), ("0011", "010211"), ("11220033", "0311220233"),
    ("11223344", "0511223344"), ("11000000", "0211010101"),
])
def test_cobs_codes_the_published_examples(frame, coded):
    assert cobs_encode(bytes.fromhex(frame)).hex() == coded
    assert cobs_decode(bytes.fromhex(coded)).hex() == frame


@pytest.mark.parametrize("length", [0, 1, 2, 253, 254, 255, 256, 508, 600])
def test_cobs_is_undone_by_decode(rng, length):
    for alphabet in (b"\1", b"\0", b"\0\1\2", bytes(range(256))):
        frame = bytes(rng.choices(alphabet, k=length))
        coded = cobs_encode(frame)
        assert 0 not in coded
        assert cobs_decode(coded) == frame
        # The paper's bound, plus one: a full last block gets an empty one behind it here.
        assert len(coded) <= length + length // 254 + 1


def test_frames_grow_by_one_byte_and_a_zero():
    coded = Request(1, 2, 3, 4, 5, b"\1" * MAX_DATA_BYTES).encode()
    assert len(coded) == MAX_FRAME_BYTES + 2
    assert coded[-1] == 0


@pytest.mark.parametrize("coded", ["00", "0311", "0300", "051122", "02110500", "ff01"])
def test_cobs_refuses_what_no_encoder_makes(coded):
    assert cobs_decode(bytes.fromhex(coded)) is None


def test_frames_are_as_documented():
    request = Request(LinkOp.WRITE_MEMORY, 9, 0x1234, 0x89AB_CDE0, 4, b"\0\1\2\3")
    body = bytes.fromhex("05 09 3412 e0cdab89 0400 00010203")
    assert cobs_decode(request.encode()[:-1]) == body + struct.pack("<I", zlib.crc32(body))
    assert Request.decode(request.encode()[:-1]) == request
    reply = Reply(LinkOp.READ_REGISTER, 9, 0x1234, LinkStatus.SLVERR, b"\5")
    body = bytes.fromhex("82 09 3412 01 00 0100 05")
    assert cobs_decode(reply.encode()[:-1]) == body + struct.pack("<I", zlib.crc32(body))
    assert Reply.decode(reply.encode()[:-1]) == reply


def test_no_damaged_byte_passes_the_crc(rng):
    coded = Reply(LinkOp.READ_MEMORY, 1, 2, 0, bytes(rng.choices(range(256), k=64))).encode()[:-1]
    for at in range(len(coded)):
        for other in {coded[at] ^ 1 << bit for bit in range(8)} | {0, 255} - {coded[at]}:
            assert Reply.decode(coded[:at] + bytes([other]) + coded[at + 1 :]) is None
        assert Reply.decode(coded[:at]) is None


def test_noise_is_never_a_frame(rng):
    for _ in range(2000):
        noise = bytes(rng.choices(range(256), k=rng.randint(0, 40)))
        assert Request.decode(noise) is None and Reply.decode(noise) is None


def test_request_is_no_reply():
    assert Reply.decode(Request(LinkOp.HELLO, 1, 2, 0, 12).encode()[:-1]) is None


# -- client ---------------------------------------------------------------------------------------


def test_hello_tells_the_memory():
    client, line = connect(memory=bytearray(8192))
    assert (client.memory_base, client.memory_bytes) == (0, 8192)
    assert line.model.session != 0


def test_registers_and_interrupt():
    client, line = connect()
    client.write_register(0x40, 0xDEAD_BEEF)
    assert client.read_register(0x40) == 0xDEAD_BEEF
    assert client.interrupt() is False
    line.model.interrupt = True
    assert client.interrupt() is True


@pytest.mark.parametrize("address", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, MAX_DATA_BYTES, MAX_DATA_BYTES + 1, 1000])
def test_memory_at_any_address_and_length(rng, address, length):
    before = bytearray(rng.choices(range(256), k=4096))
    client, line = connect(memory=before[:])
    data = bytes(rng.choices(range(256), k=length))
    assert client.read_memory(address, length) == before[address : address + length]
    client.write_memory(address, data)
    before[address : address + length] = data
    assert line.model.memory == before
    assert client.read_memory(address, length) == data


def test_b6_refused_register_is_a_device_error_and_not_repeated():
    client, line = connect(read_only=frozenset([8]))
    with pytest.raises(DeviceError, match="WRITE_REGISTER at 0x8 answered SLVERR") as caught:
        client.write_register(8, 1)
    assert not isinstance(caught.value, LinkError)
    assert len(line.model.executed) == 1 and client.repeated == 0


def test_request_that_the_device_does_not_know_is_refused():
    client, _ = connect()
    with pytest.raises(LinkError, match="READ_MEMORY at 0x1000 was refused with status 2"):
        client.read_memory(4096, 4)


def test_another_protocol_version_is_refused():
    with pytest.raises(LinkError, match="protocol version of the link must be 1, not 2"):
        connect(version=2)


def test_close_releases_the_line():
    client, line = connect()
    client.close()
    assert line.closed


# -- faults ---------------------------------------------------------------------------------------


def exchange(client, rng, count):
    """Random operations; every read is checked, every write is returned in order."""
    memory, registers, written = bytearray(4096), {}, []
    for serial in range(count):
        kind = rng.randrange(4)
        if kind == 0:
            at = 4 * rng.randrange(16)
            client.write_register(at, serial)
            registers[at] = serial
            written.append((at, struct.pack("<I", serial)))
        elif kind == 1:
            at = 4 * rng.randrange(16)
            assert client.read_register(at) == registers.get(at, 0)
        else:
            at, words = 4 * rng.randrange(1000), rng.randint(1, 8)
            if kind == 2:
                data = struct.pack("<I", serial) * words
                client.write_memory(at, data)
                memory[at : at + len(data)] = data
                written.append((at, data))
            else:
                assert client.read_memory(at, 4 * words) == memory[at : at + 4 * words]
    return written


@pytest.mark.parametrize("rates", [
    Rates(lost=0.005), Rates(flipped=0.005), Rates(doubled=0.005), Rates(inserted=0.005),
    Rates(0.003, 0.003, 0.003, 0.003),
], ids=["lost", "flipped", "doubled", "inserted", "all"])
def test_e1_damaged_bytes_are_repaired_and_writes_happen_once(rng, rates):
    client, line = connect(rates, retries=60)
    written = exchange(client, rng, 1500)
    assert line.model.writes() == written
    assert client.repeated > 50


def test_clean_line_repeats_nothing(rng):
    client, line = connect()
    written = exchange(client, rng, 600)
    assert line.model.writes() == written
    assert (client.repeated, client.damaged, line.silences) == (0, 0, 0)


def test_e2_lost_reply_is_sent_again_and_the_write_is_not_repeated():
    client, line = connect()
    lost = []

    def lose_first_reply(data, way):
        if way == "back" and not lost:
            lost.append(data)
            return b""
        return data

    line.damage = lose_first_reply
    client.write_register(4, 77)
    assert lost and client.repeated == 1
    assert line.model.writes() == [(4, struct.pack("<I", 77))]


def test_e2_late_reply_is_not_taken_for_the_next():
    client, line = connect()
    client.write_register(4, 1)
    client.write_register(8, 2)
    line.damage = lambda data, way: 2 * data if way == "back" else data
    for _ in range(5):
        assert client.read_register(4) == 1
        assert client.read_register(8) == 2


def test_e1_doubled_frames_are_carried_out_once(rng):
    client, line = connect()
    line.damage = lambda data, way: 2 * data if way == "out" else data
    written = exchange(client, rng, 600)  # sequence numbers come round more than twice
    assert line.model.writes() == written


def test_e3_noise_before_frames_is_passed_over(rng):
    client, line = connect(retries=40)

    def noisy(data, way):
        noise = bytes(rng.choices(range(256), k=rng.randint(0, 3 * MAX_FRAME_BYTES)))
        return noise + data if rng.random() < 0.3 else data

    line.damage = noisy
    written = exchange(client, rng, 400)
    assert line.model.writes() == written
    assert client.damaged > 0


def test_e3_endless_noise_ends_in_a_link_error_with_counts(rng):
    client, line = connect(retries=3)
    line.read = lambda timeout: bytes(rng.choices(range(256), k=64))
    text = (r"READ_REGISTER at 0x4 failed: no sound reply to 4 tries of 0.01 s "
            r"\(\d+ damaged frames, 3 requests repeated so far\)")
    with pytest.raises(LinkError, match=text):
        client.read_register(4)


def test_e3_line_without_frames_ends_in_a_link_error():
    client, line = connect(retries=2)
    line.read = lambda timeout: b"\x55" * 64
    with pytest.raises(LinkError, match="3 damaged frames"):
        client.read_register(4)


def test_e3_slow_noise_ends_by_the_clock(monkeypatch):
    client, line = connect(retries=1)
    now = [0.0]

    def drip(timeout):
        now[0] += 0.9 * timeout
        return b"\x55"

    line.read = drip
    monkeypatch.setattr(link.time, "monotonic", lambda: now[0])
    with pytest.raises(LinkError, match="2 tries"):
        client.read_register(4)
    assert now[0] < 1


def test_e3_foreign_frames_are_never_a_read():
    client, line = connect(retries=2)
    foreign = b"".join(
        Reply(op, sequence, session, 0, b"\1\2\3\4").encode()
        for op in LinkOp for sequence in (0, 1, 2, 77) for session in (0, line.model.session ^ 1))
    line.damage = lambda data, way: foreign if way == "back" else data
    with pytest.raises(LinkError, match="no sound reply"):
        client.read_register(4)
    line.damage = lambda data, way: foreign + data if way == "back" else data
    assert client.read_register(4) == 0


def test_e1_lost_end_of_a_frame_costs_one_repeat():
    client, line = connect()
    sent = []

    def lose_first_end(data, way):
        if way == "out":
            sent.append(data)
            return data[:-1] if len(sent) == 1 else data
        return data

    line.damage = lose_first_end
    client.write_register(4, 77)
    assert client.repeated == 1 and len(sent) == 2


def test_e3_host_that_follows_a_killed_one_is_heard_at_once():
    client, line = connect()
    line.write(Request(LinkOp.WRITE_REGISTER, 9, line.model.session, 4, 4, bytes(4)).encode()[:7])
    other = LinkClient(line, timeout=0.01, retries=0)
    other.hello()
    assert other.repeated == 0 and not line.model.writes()


@pytest.mark.parametrize("call", [
    lambda client: client.write_register(4, 1), lambda client: client.write_memory(4, bytes(4))])
def test_e4_write_without_an_answer_has_an_unknown_outcome(call):
    client, line = connect(retries=2)
    line.damage = lambda data, way: b"" if way == "back" else data
    with pytest.raises(OutcomeUnknown, match=r"WRITE_\w+ at 0x4 may or may not have been carried"):
        call(client)
    assert len(line.model.writes()) == 1
    line.damage = lambda data, way: data
    assert client.read_register(4) in (0, 1)  # the link goes on


def test_e4_read_without_an_answer_is_a_plain_link_error():
    client, line = connect(retries=2)
    line.damage = lambda data, way: b""
    with pytest.raises(LinkError, match="no sound reply to 3 tries") as caught:
        client.read_memory(0, 4)
    assert not isinstance(caught.value, OutcomeUnknown)


def test_e5_restarted_device_is_noticed_and_can_be_greeted_again():
    client, line = connect()
    client.write_register(4, 5)
    line.model.restart()
    for call in (lambda: client.read_register(4), lambda: client.write_register(4, 6)):
        with pytest.raises(DeviceRestarted, match="it has restarted, and its state is lost"):
            call()
    assert not line.model.registers
    client.hello()
    assert client.read_register(4) == 0


def test_e5_second_host_takes_the_session_away():
    client, line = connect()
    other = LinkClient(line, timeout=0.01)
    other.hello()
    with pytest.raises(DeviceRestarted):
        client.write_register(4, 1)
    other.write_register(4, 2)
    assert line.model.registers == {4: 2}


def test_e5_pulled_cable_is_a_link_error():
    client, line = connect()

    def dead(*arguments):
        raise OSError("device not configured")

    line.read = dead
    with pytest.raises(OutcomeUnknown, match="the line is dead: device not configured"):
        client.write_register(4, 1)
    line.write = dead
    with pytest.raises(LinkError, match="the line is dead") as caught:
        client.write_register(4, 1)
    assert not isinstance(caught.value, OutcomeUnknown)  # it was never sent


def test_nobody_at_home_is_a_link_error():
    line = FaultyLine(LinkModel())
    line.damage = lambda data, way: b""
    with pytest.raises(LinkError, match="HELLO at 0x0 failed: no sound reply to 3 tries"):
        LinkClient(line, timeout=0.01, retries=2).hello()
