"""Real SDK clients against a model server; each call returns what its own parser gave the caller."""

from __future__ import annotations

from typing import Any

PROMPT = "Say something about passive taps, naïve or not."


def openai_calls(base_url: str) -> list[dict[str, Any]]:
    """Chat, completions and Responses, whole and streamed, a call that is broken off, and a failure: 8 calls."""
    import openai

    seen: list[dict[str, Any]] = []
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="sk-test-0123456789abcdef", max_retries=0) as client:
        messages: Any = [{"role": "system", "content": "You are a test."}, {"role": "user", "content": PROMPT}]
        answer: Any = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, seed=1)
        seen.append(
            {
                "api": "openai.chat",
                "text": answer.choices[0].message.content,
                "finish": answer.choices[0].finish_reason,
                "in": answer.usage.prompt_tokens,
                "out": answer.usage.completion_tokens,
            }
        )
        stream: Any = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=24, seed=2, stream=True, stream_options={"include_usage": True}
        )
        row: dict[str, Any] = {"api": "openai.chat", "text": "", "finish": None, "streaming": True}
        for chunk in stream:
            for choice in chunk.choices:
                row["text"] += choice.delta.content or ""
                row["finish"] = choice.finish_reason or row["finish"]
            if chunk.usage:
                row |= {"in": chunk.usage.prompt_tokens, "out": chunk.usage.completion_tokens}
        seen.append(row)
        whole: Any = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=10, seed=3)
        seen.append({"api": "openai.completions", "text": whole.choices[0].text, "finish": whole.choices[0].finish_reason})
        parts: Any = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=16, seed=4, stream=True)
        text = "".join(part.choices[0].text for part in parts if part.choices)
        seen.append({"api": "openai.completions", "text": text, "streaming": True})
        response: Any = client.responses.create(model="tiny", input=PROMPT, max_output_tokens=12)
        seen.append({"api": "openai.responses", "text": response.output_text, "id": response.id})
        text = ""
        for event in client.responses.create(model="tiny", input=PROMPT, max_output_tokens=20, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
        seen.append({"api": "openai.responses", "text": text, "streaming": True})
        stream = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        text = ""
        for number, chunk in enumerate(stream):
            text += chunk.choices[0].delta.content or ""
            if number == 5:
                break
        stream.close()
        seen.append({"api": "openai.chat", "text_begins": text, "streaming": True, "broken_off": True})
        try:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": 5}])  # type: ignore[list-item]
        except openai.APIStatusError as fault:
            seen.append({"api": "openai.chat", "status": fault.status_code})
    return seen


def anthropic_calls(base_url: str) -> list[dict[str, Any]]:
    """Messages, whole and streamed: 2 calls."""
    import anthropic

    seen: list[dict[str, Any]] = []
    with anthropic.Anthropic(base_url=base_url, api_key="sk-ant-test-0123456789", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": PROMPT}]
        answer: Any = client.messages.create(model="tiny", max_tokens=12, messages=messages, extra_body={"temperature": 0.0})
        text = "".join(block.text for block in answer.content if block.type == "text")
        seen.append(
            {
                "api": "anthropic.messages",
                "text": text,
                "finish": answer.stop_reason,
                "in": answer.usage.input_tokens,
                "out": answer.usage.output_tokens,
            }
        )
        with client.messages.stream(model="tiny", max_tokens=20, messages=messages, extra_body={"temperature": 0.0}) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        seen.append(
            {"api": "anthropic.messages", "text": text, "finish": final.stop_reason, "out": final.usage.output_tokens, "streaming": True}
        )
    return seen
