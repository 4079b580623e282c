"""A real model server: llama.cpp's own HTTP server (the `xllamacpp` wheel) over a tiny random model, made here by seed.

The text is noise; the HTTP, SSE and JSON are the server's. Run as a script it serves until its standard input ends.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 297  # 256 byte tokens, the special ones, and some words


def write_model(path: Path, seed: int = 7) -> None:
    """A llama of two layers, 64 wide, random weights, byte-level vocabulary: 0.5 MB, the same bytes for the same seed."""
    import gguf
    import numpy as np

    width, layers, heads, feed_forward = 64, 2, 4, 128
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_tokenizer_model("llama")
    words = [f"\u2581word{n}" for n in range(VOCABULARY - 259)]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>")

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    tensor("token_embd.weight", len(tokens), width)
    tensor("output.weight", len(tokens), width)
    ones("output_norm.weight")
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{name}.weight", width, width)
        tensor(f"blk.{layer}.ffn_gate.weight", feed_forward, width)
        tensor(f"blk.{layer}.ffn_up.weight", feed_forward, width)
        tensor(f"blk.{layer}.ffn_down.weight", width, feed_forward)
        ones(f"blk.{layer}.attn_norm.weight")
        ones(f"blk.{layer}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextlib.contextmanager
def model_server(folder: Path, port: int) -> Iterator[str]:
    """Serve on 127.0.0.1:`port` in a process of its own; yields the base URL once it answers."""
    model = folder / "tiny.gguf"
    if not model.exists():
        write_model(model)
    process = subprocess.Popen(
        [sys.executable, __file__, str(model), str(port)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the model server did not come up (exit {process.poll()})") from None
                time.sleep(0.05)
        yield url
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serve(model: str, port: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.model_alias = {"tiny-random-llama"}
    params.n_ctx = 2048
    params.n_parallel = 4
    params.cpuparams.n_threads = 1
    params.warmup = False
    # Random weights would say nothing, or end, at random: the same words for the same question, and never an early end.
    params.sampling.temp = 0.0
    params.sampling.ignore_eos = True
    server = xllamacpp.Server(params)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
