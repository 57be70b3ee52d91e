#!/usr/bin/env python3
"""Appends to the fixed text of the perplexity comparison: answers of a small open model to prompts.txt.

Why a model's own words: they are prose, code and Chinese in one file, they are stable (the file is kept, not the
run), and nobody else's sentences are copied in. Needs LLAMA_BIN (a folder with llama-server) and MODEL (a GGUF).
Usage: make_text.py OUT.txt COUNT
The kept file: all 50 prompts to Qwen2.5-Coder-0.5B-Instruct Q4_K_M (Apache-2.0), whose statements are not facts, then
some of this project's own documents and sources as they once were.
"""
import json, os, pathlib, subprocess, sys, time, urllib.request
from concurrent.futures import ThreadPoolExecutor

PORT = 18471
INSTRUCTION = "Continue this text at length, without comment:\n\n{}"
HERE = pathlib.Path(__file__).parent


def post(path, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=3600))


def wait_ready():
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1)
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("llama-server did not start")


def answer(job):
    seed, prompt = job
    reply = post("/v1/chat/completions", {
        "messages": [{"role": "user", "content": INSTRUCTION.format(prompt)}],
        "temperature": 1.0, "top_p": 0.95, "top_k": 0, "seed": seed, "max_tokens": 700,
    })
    return prompt + "\n" + reply["choices"][0]["message"]["content"].strip() + "\n\n"


def main():
    server = subprocess.Popen(
        [os.path.join(os.environ["LLAMA_BIN"], "llama-server"), "-m", os.environ["MODEL"], "--port", str(PORT),
         "-t", "2", "-np", "4", "-c", "8192"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_ready()
        prompts = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
        with ThreadPoolExecutor(4) as pool, open(sys.argv[1], "a", encoding="utf-8") as out:
            for text in pool.map(answer, list(enumerate(prompts))[: int(sys.argv[2])]):
                out.write(text)
    finally:
        server.terminate()


main()
