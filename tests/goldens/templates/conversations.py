"""The conversations that make.py renders with every template: name, messages, and the other variables."""

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a place.\nNow or later.", "parameters": {"type": "object", "properties": {
    "place": {"type": "string", "description": "City \"and\" country <b>"}, "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
    "days": {"type": ["integer", "null"], "minimum": 1.5}, "tags": {"type": "array", "items": {"type": "string"}}, "at": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}}, "required": ["place"]}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Heure à l'endroit", "parameters": {"type": "object", "properties": {}, "required": []}, "return": {"type": "string"}}}
CALL = {"type": "function", "id": "call12345", "function": {"name": "get_weather", "arguments": {"place": "Zürich, \"CH\"", "days": 2, "tags": ["a", "b"], "now": True, "x": None, "y": 1.0}}}
CALL_2 = {"type": "function", "id": "call67890", "function": {"name": "clock", "arguments": {}}}
CALL_TEXT = {"type": "function", "id": "abcdefghi", "function": {"name": "clock", "arguments": "{\"zone\": \"UTC\"}"}}

u, a, s = (lambda role: lambda content, **more: {"role": role, "content": content, **more})("user"), (lambda content, **more: {"role": "assistant", "content": content, **more}), (lambda content: {"role": "system", "content": content})
PROMPT = {"add_generation_prompt": True}

CONVERSATIONS = {
    "user": ([u("What is the capital of France?")], PROMPT),
    "system": ([s("You are brief. <b>&\"'</b>"), u("Hi  there\n")], PROMPT),
    "turns": ([u("Hello"), a("Hi! How can I help?"), u(" Tell me\n\na joke 😀 "), a("Why?\n")], {}),
    "long": ([s("Sys\n"), u("a"), a("b"), u("c"), a("d"), u("e")], PROMPT),
    "empty": ([s(""), u(""), a(""), u("\n \n")], PROMPT),
    "unicode": ([u("Straße ﬁ İı\u3000\u2028 日本語 \x1c\u200b👩‍👩‍👧 {{ x }} {% y %} <|im_end|>"), a("\tÉ\r\nx\\n")], {}),
    "tools": ([s("Use tools."), u("Weather?")], {**PROMPT, "tools": [WEATHER, CLOCK]}),
    "calls": ([u("Weather?"), a("", tool_calls=[CALL]), {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "{\"t\": 21.5}"}, a("It is 21.5 °C."), u("Thanks")], {**PROMPT, "tools": [WEATHER, CLOCK]}),
    "calls-null": ([s("S"), u("Both?"), a(None, tool_calls=[CALL, CALL_2]), {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "sun\n"}, {"role": "tool", "name": "clock", "tool_call_id": "call67890", "content": "12:00"}], {**PROMPT, "tools": [WEATHER]}),
    "calls-text": ([u("Time?"), a("I look.", tool_calls=[CALL_TEXT]), {"role": "tool", "name": "clock", "tool_call_id": "abcdefghi", "content": {"time": "12:00", "ok": True}}], {"tools": [CLOCK]}),
    "reasoning": ([u("2+2?"), a("4", reasoning_content="Let me\nadd."), u("And 3?"), a("<think>\nhm\n</think>\n\n7"), u("ok")], PROMPT),
    "reasoning-last": ([u("2+2?"), a("four", reasoning="I add.\n"), u("More"), a("\n\nfive", thinking="Five?")], {"enable_thinking": True}),
    "no-thinking": ([s("/no_think"), u("Go")], {**PROMPT, "enable_thinking": False}),
    "thinking": ([u("Go /think")], {**PROMPT, "enable_thinking": True, "thinking": True, "reasoning_effort": "high"}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image"}, {"type": "text", "text": " what\n"}]}, a([{"type": "text", "text": "A cat."}]), u("Sure?")], PROMPT),
    "documents": ([u("Ask")], {**PROMPT, "documents": [{"title": "One", "text": "Text é\n"}, {"title": "Two", "text": "b"}]}),
    "developer": ([{"role": "developer", "content": "Be good."}, u("x"), a("y"), {"role": "user", "content": "z", "name": "ann"}], PROMPT),
    "odd": ([a("first"), a("second"), u("third"), u("fourth")], PROMPT),
    "none": ([], {}),
}
