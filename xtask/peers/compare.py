#!/usr/bin/env python3
"""Holds the engine against llama.cpp on real files: perplexity of a fixed text, and greedy continuations.

Environment: LLAMA_BIN (a folder with llama-perplexity, llama-tokenize and llama-server), PEER_CHECK (the binary of
`cargo build --release -p mintage-engine --example peer_check`).
Usage: compare.py perplexity|greedy|kl MODEL.gguf…
Each model gives one JSON line; the exit code is 1 if a bound does not hold (perplexity within 0.5 %, every greedy
token in the other's top 5, mean divergence at most 0.005 nats).
"""
import json, os, pathlib, re, subprocess, sys, tempfile, time, urllib.request

HERE = pathlib.Path(__file__).parent
TEXT = HERE.parent.parent / "crates/engine/tests/texts/mixed.txt"
PORT = 18472
CONTEXT = 512
# The peer spins at its barriers: on a busy machine one thread is faster than two.
THREADS = os.environ.get("PEER_THREADS", "2")
CONTINUATION = int(os.environ.get("PEER_TOKENS", "32"))
MAX_PERPLEXITY_RATIO_ERROR = 0.005
MAX_MEAN_KL_NATS = 0.005


def llama(tool, *args):
    command = [os.path.join(os.environ["LLAMA_BIN"], tool), *args]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def ours(model, command, data, number):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(data, file)
        file.flush()
        out = subprocess.run([os.environ["PEER_CHECK"], model, command, file.name, str(number)],
                             check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return json.loads(out)


def text_tokens(model):
    out = llama("llama-tokenize", "-m", model, "-f", str(TEXT), "--ids", "--log-disable")
    return json.loads(out[out.rindex("["):])


def perplexity(model):
    tokens = text_tokens(model)
    out = llama("llama-perplexity", "-m", model, "-f", str(TEXT), "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", THREADS)
    peer, peer_error = map(float, re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", out).groups())
    report = ours(model, "perplexity", tokens, CONTEXT)
    ratio_error = report["perplexity"] / peer - 1
    return abs(ratio_error) <= MAX_PERPLEXITY_RATIO_ERROR, {
        "tokens": len(tokens), "windows": report["windows"], "peer": peer, "peer_standard_error": peer_error,
        "ours": round(report["perplexity"], 4), "difference_percent": round(100 * ratio_error, 3)}


def kl(model):
    report = ours(model, "kl", text_tokens(model), CONTEXT)
    return report["mean_nats"] <= MAX_MEAN_KL_NATS, report


class Server:
    def __init__(self, model):
        self.process = subprocess.Popen(
            [os.path.join(os.environ["LLAMA_BIN"], "llama-server"), "-m", model, "--port", str(PORT), "-t", THREADS,
             "-np", "1", "-c", "2048"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1)
                return self
            except OSError:
                time.sleep(0.5)
        raise SystemExit("llama-server did not start")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def post(self, path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=600))

    def tokenize(self, text):
        return self.post("/tokenize", {"content": text, "add_special": False})["tokens"]

    def greedy(self, tokens, count):
        body = {"prompt": tokens, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": True,
                "ignore_eos": False}
        return self.post("/completion", body)["tokens"]

    def top(self, tokens):
        body = {"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": 5, "cache_prompt": True}
        # Absent where the server's own choice ends the text: it does not tell the alternatives then.
        reply = self.post("/completion", body).get("completion_probabilities")
        return [entry["id"] for entry in reply[0]["top_logprobs"]] if reply else None


def our_tops(model, prompts, theirs):
    """Our five likeliest at each of their tokens; one call a length, since each loads the model."""
    tops = [[] for _ in theirs]
    for length in {len(tokens) for tokens in theirs if tokens}:
        numbers = [number for number, tokens in enumerate(theirs) if len(tokens) == length]
        answers = ours(model, "top", [prompts[number] + theirs[number] for number in numbers], length)
        for number, top in zip(numbers, answers):
            tops[number] = top
    return tops


def greedy(model):
    prompts = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
    with Server(model) as server:
        prompts = [server.tokenize(prompt) for prompt in prompts]
        mine = ours(model, "greedy", prompts, CONTINUATION)
        theirs = [server.greedy(prompt, CONTINUATION) for prompt in prompts]
        tops = [[server.top(p + tokens[:i]) for i in range(len(tokens))] for p, tokens in zip(prompts, mine)]
    checked = found = first = untold = 0
    outliers = []
    for number, (tokens, top) in enumerate(zip(mine, tops)):
        for position, (token, five) in enumerate(zip(tokens, top)):
            if five is None:
                untold += 1
                continue
            checked, found, first = checked + 1, found + (token in five), first + (token == five[0])
            if token not in five:
                outliers.append(["ours", number, position])
    checked_theirs = found_theirs = 0
    for number, (tokens, top) in enumerate(zip(theirs, our_tops(model, prompts, theirs))):
        for position, (token, five) in enumerate(zip(tokens, top)):
            checked_theirs, found_theirs = checked_theirs + 1, found_theirs + (token in five)
            if token not in five:
                outliers.append(["theirs", number, position])
    return found == checked and found_theirs == checked_theirs, {
        "prompts": len(prompts), "identical": sum(a[:len(b)] == b for a, b in zip(mine, theirs)),
        "ours_in_their_top5": f"{found}/{checked}", "ours_is_their_first": f"{first}/{checked}",
        "theirs_in_our_top5": f"{found_theirs}/{checked_theirs}", "untold": untold, "outliers": outliers}


def main():
    command, models = sys.argv[1], sys.argv[2:]
    check = {"perplexity": perplexity, "greedy": greedy, "kl": kl}[command]
    all_hold = True
    for model in models:
        holds, figures = check(model)
        all_hold &= holds
        print(json.dumps({"model": pathlib.Path(model).name, "check": command, "holds": holds, **figures}), flush=True)
    sys.exit(0 if all_hold else 1)


main()
