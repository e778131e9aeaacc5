"""Runs a language model in onnxruntime-genai, on the device: Python 3.8 or newer, numpy and onnxruntime-genai.

A sample is one question: ``ask``, the bytes of a JSON document; ``answer`` is another, and ``logits`` are rows that it
speaks of (``[rows, vocabulary]``, none for most). The model is given by ``genai_config.json`` in its folder.

    {"kind": "score", "tokens": […], "prompt": 8, "keep": 2}
        The first ``prompt`` tokens at once, then every other one by itself, as in decoding, whatever the model would
        have said. → {"logprob": log-probability of each token from ``prompt`` on, "best": the most likely token after
        the prompt and after each of the others, "ms": […]}; ``logits`` are those after the last ``keep`` tokens.
    {"kind": "generate", "tokens": […], "new": 64, "stop": [2] or null}
        → {"tokens": at most ``new`` more, the most likely each time, "ended": whether a stop token ended it,
           "ms": [prompt with the first token, each further token], "rss": bytes now, "peak": bytes at most}
        ``stop``: in place of the model's own stop tokens.
    {"kind": "stops", "tokens": […], "new": 64, "after": 3}
        Freely, then with the token that came ``after`` so many as the one stop token.
        → {"free": […], "stop": that token, "stopped": […], "ended": …}
    {"kind": "text", "texts": ["…"], "chats": [{"messages": […], "tools": […] or null, "prompt": true}]}
        → {"ids": […], "back": the texts decoded, "chats": [{"text": "…", "ids": […]} or {"error": "…"}]}
    {"kind": "window", "window": 8192}
        One token more than the window. → {"errors": what the runtime says to it, "" where it says nothing}
    {"kind": "paged", …} → {"logprob": null}: this runtime has one kind of attention.
    {"kind": "facts"} → {"stop": the runtime's stop tokens, "type": …}

Options: ``threads`` (intra-op).
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: on by default since 1.29

import json
import time


def versions():
    """Versions of the runtime and of numpy; imports the runtime."""
    import numpy
    import onnxruntime
    import onnxruntime_genai

    return {
        "onnxruntime-genai": onnxruntime_genai.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": numpy.__version__,
    }


def probe():
    """Whether models can run here."""
    import onnxruntime_genai

    return {"usable": True, "version": onnxruntime_genai.__version__}


def load(path, options):
    """Open the model that lies beside ``path``; an unknown option is an error."""
    return Session(path, options)


class Session:
    """One loaded model and its tokenizer."""

    def __init__(self, path, options):
        import onnxruntime_genai

        unknown = sorted(set(options) - {"threads", "placement", "profiling"})
        if unknown:
            raise ValueError("unknown option %s; known: threads" % unknown[0])
        self._genai = onnxruntime_genai
        self._folder = os.path.dirname(os.path.abspath(path))
        self._threads = int(options["threads"])
        self._model = self._opened({})
        self._tokenizer = None
        self._asked = {}
        self._answer = {}
        self._logits = None
        self.inputs = [_bytes("ask")]
        self.outputs = [_bytes("answer"), dict(_bytes("logits"), dtype="float32", shape=[None, None])]

    def _opened(self, changes):
        config = self._genai.Config(self._folder)
        settings = {"intra_op_num_threads": self._threads, "inter_op_num_threads": 1}
        model = dict({"decoder": {"session_options": settings}}, **changes)
        config.overlay(json.dumps({"model": model}))
        return self._genai.Model(config)

    def _words(self):
        if self._tokenizer is None:
            self._tokenizer = self._genai.Tokenizer(self._model)
        return self._tokenizer

    def _generator(self, length, model=None):
        chosen = model or self._model
        params = self._genai.GeneratorParams(chosen)
        # The most likely token, whatever the model's own settings for apps are.
        params.set_search_options(
            max_length=length,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            min_length=0,
            no_repeat_ngram_size=0,
        )
        return self._genai.Generator(chosen, params)

    def prepare(self, arrays):
        """Read the question."""
        self._asked = json.loads(arrays["ask"].tobytes().decode("utf-8"))

    def invoke(self):
        """Answer it."""
        self._logits = None
        self._answer = getattr(self, "_" + self._asked["kind"])(self._asked)

    def results(self):
        """The answer to the last question."""
        import numpy

        text = json.dumps(self._answer).encode("utf-8")
        rows = numpy.zeros((0, 1), numpy.float32) if self._logits is None else self._logits
        return {"answer": numpy.frombuffer(text, numpy.uint8), "logits": rows}

    def speak(self, messages, new):
        """Yield the answer to a conversation (``[{"role": …, "content": …}]``) piece by piece."""
        words = self._words()
        try:
            text = words.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        except Exception:  # noqa: BLE001 - a model without a template continues what was said
            text = messages[-1]["content"]
        tokens = words.encode(text)
        window = self._context_length()
        if len(tokens) >= window:
            raise ValueError("the conversation is longer than the window of %d tokens" % window)
        generator = self._generator(min(len(tokens) + new, window))
        stream = words.create_stream()
        generator.append_tokens(tokens)
        while not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token not in self._stop_tokens():
                yield stream.decode(token)

    def _context_length(self):
        with open(os.path.join(self._folder, "genai_config.json"), encoding="utf-8") as file:
            return int(json.load(file)["model"]["context_length"])

    def placement(self):
        """The runtime does not tell what it executes where."""
        return {"runtime": "onnxruntime-genai", "version": self._genai.__version__, "nodes": None}

    def _score(self, asked):
        import numpy

        tokens, prompt, keep = asked["tokens"], asked["prompt"], asked["keep"]
        generator = self._generator(len(tokens) + 1)
        logprob, best, kept, times = [], [], [], []
        start = time.perf_counter()
        generator.append_tokens(numpy.asarray(tokens[:prompt], numpy.int32))
        for i in range(prompt, len(tokens) + 1):
            row = generator.get_logits().reshape(-1)
            times.append((time.perf_counter() - start) * 1e3)
            best.append(int(row.argmax()))
            if i > len(tokens) - keep:
                kept.append(row.copy())
            if i == len(tokens):
                break
            top = float(row.max())
            logprob.append(float(row[tokens[i]]) - top - float(numpy.log(numpy.exp(row - top).sum())))
            start = time.perf_counter()
            generator.append_tokens(numpy.asarray(tokens[i : i + 1], numpy.int32))
        if kept:
            self._logits = numpy.stack(kept).astype(numpy.float32)
        return {"logprob": logprob, "best": best, "ms": times}

    def _generate(self, asked):
        import numpy

        tokens, new, stop = asked["tokens"], asked["new"], asked.get("stop")
        model = self._model if stop is None else self._opened({"eos_token_id": list(stop)})
        generator = self._generator(len(tokens) + new, model)
        made, times, start = [], [], time.perf_counter()
        generator.append_tokens(numpy.asarray(tokens, numpy.int32))
        while not generator.is_done() and len(times) < new:
            generator.generate_next_token()
            times.append((time.perf_counter() - start) * 1e3)
            made.append(int(generator.get_next_tokens()[0]))  # the sequence itself leaves a stop token out
            start = time.perf_counter()
        stops = self._stop_tokens() if stop is None else set(stop)
        ended = bool(made) and made[-1] in stops and generator.is_done()
        return dict({"tokens": made, "ended": ended, "ms": times}, **_memory())

    def _stop_tokens(self):
        return {int(t) for t in self._words().eos_token_ids}

    def _stops(self, asked):
        free = self._generate(dict(asked, stop=None))["tokens"]
        stop = free[min(asked["after"], len(free) - 1)]
        again = self._generate(dict(asked, stop=[stop]))
        return {"free": free, "stop": stop, "stopped": again["tokens"], "ended": again["ended"]}

    def _text(self, asked):
        words = self._words()
        ids = [[int(t) for t in words.encode(text)] for text in asked["texts"]]
        back = [words.decode(row) for row in ids]
        return {"ids": ids, "back": back, "chats": [self._chat(c) for c in asked["chats"]]}

    def _chat(self, chat):
        more = {} if chat.get("tools") is None else {"tools": json.dumps(chat["tools"])}
        try:
            text = self._words().apply_chat_template(
                json.dumps(chat["messages"]), add_generation_prompt=chat["prompt"], **more
            )
        except Exception as error:  # noqa: BLE001 - its words are the answer
            return {"error": str(error)[:500]}
        return {"text": text, "ids": [int(t) for t in self._words().encode(text)]}

    def _window(self, asked):
        import numpy

        window, errors = asked["window"], []
        try:
            self._generator(window + 1)
            errors.append("")
        except Exception as error:  # noqa: BLE001 - its words are the answer
            errors.append(str(error)[:500])
        try:
            self._generator(window).append_tokens(numpy.zeros(window + 1, numpy.int32))
            errors.append("")
        except Exception as error:  # noqa: BLE001 - its words are the answer
            errors.append(str(error)[:500])
        return {"errors": errors}

    def _paged(self, asked):  # noqa: ARG002
        return {"logprob": None}

    def _facts(self, asked):  # noqa: ARG002
        return {"stop": sorted(self._stop_tokens()), "type": self._model.type}


def _bytes(name):
    return {"name": name, "dtype": "uint8", "shape": [None], "scale": None, "zero_point": None}


def _memory():
    found = {"rss": 0, "peak": 0}
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                for key, name in (("VmRSS:", "rss"), ("VmHWM:", "peak")):
                    if line.startswith(key):
                        found[name] = int(line.split()[1]) * 1024
    except OSError:
        pass
    return found
