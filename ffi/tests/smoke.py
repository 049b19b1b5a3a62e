"""The C interface from Python with ctypes only. smoke.py LIBRARY MODEL streams an answer."""

import ctypes as c
import sys


class Event(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("token", c.c_uint32), ("text", c.c_char_p), ("text_len", c.c_size_t),
                ("done", c.c_uint64), ("total", c.c_uint64)]


OnEvent = c.CFUNCTYPE(c.c_int32, c.POINTER(Event), c.c_void_p)


class GenerateOptions(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("max_tokens", c.c_uint32), ("ignore_eos", c.c_int32),
                ("sampling", c.c_void_p), ("stop", c.c_void_p), ("stop_count", c.c_size_t),
                ("target_tps", c.c_double), ("on_event", OnEvent), ("user_data", c.c_void_p),
                ("json_schema", c.c_char_p), ("regex", c.c_char_p), ("grammar", c.c_char_p)]


class Sampling(c.Structure):
    # The fields after the temperature are not changed.
    _fields_ = [("struct_size", c.c_size_t), ("seed", c.c_uint64), ("temperature", c.c_float), ("rest", c.c_byte * 108)]


lib = c.CDLL(sys.argv[1])
lib.dollop_last_error.restype = lib.dollop_status_name.restype = lib.dollop_version.restype = c.c_char_p
for name in ["generate_options", "sampling"]:
    getattr(lib, f"dollop_{name}_init").argtypes = [c.c_void_p, c.c_size_t]
lib.dollop_engine_open.argtypes = [c.c_char_p, c.c_void_p, c.POINTER(c.c_void_p)]
lib.dollop_engine_sampling.argtypes = [c.c_void_p, c.c_void_p]
lib.dollop_chat_new.argtypes = [c.c_void_p, c.c_void_p, c.POINTER(c.c_void_p)]
lib.dollop_chat_send.argtypes = [c.c_void_p, c.c_char_p, c.c_void_p, c.POINTER(c.c_void_p), c.c_void_p]
lib.dollop_chat_free.argtypes = lib.dollop_engine_free.argtypes = lib.dollop_text_free.argtypes = [c.c_void_p]
lib.dollop_open_handles.restype = c.c_size_t


def ok(status):
    assert status == 0, f"{lib.dollop_status_name(status).decode()}: {lib.dollop_last_error().decode()}"


assert lib.dollop_abi_version() == 1
engine, chat, text, pieces = c.c_void_p(), c.c_void_p(), c.c_void_p(), []
assert lib.dollop_engine_open(b"no-such-file", None, c.byref(engine)) == 1 and engine.value is None
assert b"no-such-file" in lib.dollop_last_error()
ok(lib.dollop_engine_open(sys.argv[2].encode(), None, c.byref(engine)))
ok(lib.dollop_chat_new(engine, None, c.byref(chat)))


@OnEvent
def hear(event, _):
    pieces.append(event.contents.text)
    return 0


options, greedy = GenerateOptions(), Sampling()
ok(lib.dollop_generate_options_init(c.byref(options), c.sizeof(options)))
ok(lib.dollop_sampling_init(c.byref(greedy), c.sizeof(greedy)))
ok(lib.dollop_engine_sampling(engine, c.byref(greedy)))
greedy.temperature = 0
options.on_event, options.sampling = hear, c.addressof(greedy)
ok(lib.dollop_chat_send(chat, "What is the capital of France?".encode(), c.byref(options), c.byref(text), None))
answer = c.cast(text, c.c_char_p).value
assert answer == b"".join(pieces) and len(pieces) > 2
lib.dollop_text_free(text)
ok(lib.dollop_chat_free(chat))
ok(lib.dollop_engine_free(engine))
assert lib.dollop_chat_free(chat) == 103, "closed already"
assert lib.dollop_open_handles() == 0
print(answer.decode())
