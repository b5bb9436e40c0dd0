"""Messages arrive as they were sent."""

import socket
import threading

import numpy as np
import pytest
from weaver_vllm.engine_side.frames import Channel, decode, encode


def test_a_message_keeps_words_numbers_and_arrays():
    arrays = {
        "whole": np.arange(6).reshape(2, 3),
        "narrow": np.array([np.nan, -1.5], np.float32),
        "none": np.zeros((0, 4)),
    }
    message = {
        "do": "sample",
        "id": 3,
        "seed": 2**64 - 1,
        "nothing": None,
        "deep": [{"arrays": arrays}],
        "text": "äß\0",
    }
    frame = encode(message)
    text_length = int.from_bytes(frame[:8], "little")
    found = decode(frame[16 : 16 + text_length], frame[16 + text_length :])
    deep = found.pop("deep")[0]["arrays"]
    assert found == {name: value for name, value in message.items() if name != "deep"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(deep[name], array)
        assert deep[name].dtype == array.dtype
        assert deep[name].shape == array.shape


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(TypeError, match="set cannot be sent"):
        encode({"a": {1}})


def test_a_channel_is_whole_messages_until_the_other_end_is_gone():
    one, other = map(Channel, socket.socketpair())
    large = np.arange(500_000)
    sending = threading.Thread(target=lambda: [one.send({"part": part, "large": large}) for part in range(3)])
    sending.start()
    for part in range(3):
        found = other.receive()
        assert found["part"] == part
        assert (found["large"] == large).all()
    sending.join()
    one.close()
    assert other.receive() is None
