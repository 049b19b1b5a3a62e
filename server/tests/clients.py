"""Real clients, as they come from PyPI, against a running server: python clients.py http://127.0.0.1:PORT MODEL.

Needs: openai anthropic ollama langchain-openai llm. Prints one line for each client; any difference is an assertion."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

url, model = sys.argv[1:3]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def use_openai():
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert client.models.list().data[0].id == model
    ask = {"model": model, "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    said = whole.choices[0].message.content
    assert said and whole.usage.completion_tokens == 16, whole
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
    assert chunks[-1].usage.completion_tokens == 16
    response = client.responses.create(model=model, input=QUESTION[0]["content"], max_output_tokens=16, temperature=0)
    assert response.output_text == said, response
    with client.responses.stream(
        model=model, input=QUESTION[0]["content"], max_output_tokens=16, temperature=0
    ) as events:
        pieces = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert pieces == said
    text = client.completions.create(model=model, prompt="Once upon", max_tokens=4, temperature=0, logprobs=3)
    likely = text.choices[0].logprobs
    assert "".join(likely.tokens) == text.choices[0].text and len(likely.top_logprobs[0]) == 3, text
    assert likely.text_offset[0] == 0 and all(p <= 0 for p in likely.token_logprobs), text
    use_openai_logprobs(client, ask, said)
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    obeys = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=40, response_format=form)
    assert json.loads(obeys.choices[0].message.content)["city"] in ("Rome", "Oslo")
    for error, change in [
        (openai.NotFoundError, {"model": "gpt-4o"}),
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"logprobs": True, "top_logprobs": 21}),
    ]:
        try:
            client.chat.completions.create(**(ask | change))
            raise SystemExit(f"{change} was taken")
        except error as e:
            assert e.body["message"], e
    # Hanging up in the middle: the next answer comes all the same.
    stream = client.chat.completions.create(model=model, messages=QUESTION, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(**ask).choices[0].message.content == said
    return said


def use_openai_logprobs(client, ask, said):
    """Log probabilities through the client's types, streamed and whole."""
    from openai.types.chat import ChatCompletionTokenLogprob

    wanted = ask | {"logprobs": True, "top_logprobs": 4}
    whole = client.chat.completions.create(**wanted).choices[0].logprobs.content
    assert len(whole) == 16 and all(isinstance(of, ChatCompletionTokenLogprob) for of in whole)
    assert b"".join(bytes(of.bytes) for of in whole).decode() == said
    for of in whole:
        assert len(of.top_logprobs) == 4 and of.logprob <= of.top_logprobs[0].logprob <= 0, of
    chunks = client.chat.completions.create(**wanted, stream=True)
    streamed = [of for c in chunks for choice in c.choices if choice.logprobs for of in choice.logprobs.content]
    assert streamed == whole, streamed
    with client.chat.completions.stream(**wanted) as stream:
        stream.until_done()
        assert stream.current_completion_snapshot.choices[0].logprobs.content == whole
    response = client.responses.create(
        model=model, input=QUESTION[0]["content"], max_output_tokens=16, temperature=0, top_logprobs=4,
        include=["message.output_text.logprobs"],
    )
    got = response.output[0].content[0].logprobs
    assert [(of.token, of.logprob) for of in got] == [(of.token, of.logprob) for of in whole], got
    assert all(len(of.top_logprobs) == 4 for of in got)


def use_anthropic(said):
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    ask = {"model": model, "messages": QUESTION, "max_tokens": 16, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**ask)
    assert (whole.content[0].text, whole.stop_reason, whole.usage.output_tokens) == (said, "max_tokens", 16), whole
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == said
        assert stream.get_final_message().usage.output_tokens == 16
    assert client.messages.count_tokens(model=model, messages=QUESTION).input_tokens > 10
    try:
        client.messages.create(**(ask | {"model": "claude"}))
        raise SystemExit("another model was taken")
    except anthropic.NotFoundError as e:
        assert e.body["error"]["type"] == "not_found_error", e


def use_ollama(said):
    import ollama

    client = ollama.Client(host=url)
    assert client.list().models[0].model.startswith(model)
    assert client.show(model).details.family
    options = {"temperature": 0, "num_predict": 16}
    whole = client.chat(model=model, messages=QUESTION, options=options)
    assert (whole.message.content, whole.done_reason, whole.eval_count) == (said, "length", 16), whole
    pieces = [p.message.content for p in client.chat(model=model, messages=QUESTION, options=options, stream=True)]
    assert "".join(pieces) == said and len(pieces) > 4
    assert client.generate(model=model, prompt=QUESTION[0]["content"], options=options).response == said
    likely = client.chat(model=model, messages=QUESTION, options=options, logprobs=True, top_logprobs=2).logprobs
    assert "".join(of.token for of in likely) == said and all(len(of.top_logprobs) == 2 for of in likely), likely
    obeys = client.chat(model=model, messages=QUESTION, format=SCHEMA, options={"num_predict": 40})
    assert json.loads(obeys.message.content)["city"] in ("Rome", "Oslo")
    try:
        client.chat(model="llama3", messages=QUESTION)
        raise SystemExit("another model was taken")
    except ollama.ResponseError as e:
        assert e.status_code == 404, e


def use_langchain(said):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=16, max_retries=0)
    assert chat.invoke(QUESTION[0]["content"]).content == said
    assert "".join(piece.content for piece in chat.stream(QUESTION[0]["content"])) == said


def use_llm(said):
    """The command `llm`, with the server as a model of OpenAI's API."""
    with tempfile.TemporaryDirectory() as folder:
        entry = f'- model_id: own\n  model_name: {model}\n  api_base: "{url}/v1"\n  api_key_name: own\n'
        pathlib.Path(folder, "extra-openai-models.yaml").write_text(entry)
        program = str(pathlib.Path(sys.executable).with_name("llm"))
        env = os.environ | {"LLM_USER_PATH": folder}
        for more in ([], ["--no-stream"]):
            command = [program, "prompt", "-m", "own", "--key", "none", "-o", "temperature", "0", "-o", "max_tokens", "16"]
            out = subprocess.run(command + more + [QUESTION[0]["content"]], env=env, capture_output=True, text=True)
            assert out.returncode == 0 and out.stdout.strip() == said.strip(), out


said = use_openai()
print("openai")
for use in (use_anthropic, use_ollama, use_langchain, use_llm):
    use(said)
    print(use.__name__.removeprefix("use_"))
