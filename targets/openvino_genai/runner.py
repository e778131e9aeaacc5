"""Runs a language model in OpenVINO GenAI, on the device: Python 3.8 or newer, numpy and openvino-genai.

A sample is one question: ``ask``, the bytes of a JSON document; ``answer`` is another, and ``logits`` are rows that it
speaks of (``[rows, vocabulary]``, none for most). The model is ``openvino_model.xml`` in its folder.

    {"kind": "score", "tokens": […], "prompt": 8, "keep": 2}
        The first ``prompt`` tokens at once, then every other one by itself, as in decoding, whatever the model would
        have said. → {"logprob": log-probability of each token from ``prompt`` on, "best": the most likely token after
        the prompt and after each of the others, "ms": […]}; ``logits`` are those after the last ``keep`` tokens.
        This is the stateful model by itself: what the pipeline runs with ATTENTION_BACKEND="SDPA".
    {"kind": "paged", "passages": [{"tokens": […], "prompt": 8}]}
        Paged attention, which the pipeline chooses by itself where the model allows it, in steps of ``prompt`` tokens.
        → {"logprob": a list like that of "score" for each passage; null where the model does not allow it}
    {"kind": "generate", "tokens": […], "new": 64, "stop": [2] or null}
        The pipeline as apps open it. → {"tokens": at most ``new`` more, the most likely each time, "ended": whether a
        stop token ended it, "ms": [prompt with the first token, each further token], "rss": bytes now, "peak": …}
        ``stop``: in place of the model's own stop tokens.
    {"kind": "stops", "tokens": […], "new": 64, "after": 3}
        Freely, then with the token that came ``after`` so many as the one stop token.
        → {"free": […], "stop": that token, "stopped": […], "ended": …}
    {"kind": "text", "texts": ["…"], "chats": [{"messages": […], "tools": […] or null, "prompt": true}]}
        → {"ids": […], "back": the texts decoded, "chats": [{"text": "…", "ids": […]} or {"error": "…"}]}
    {"kind": "window", "window": 8192}
        One token more than the window, with the folder's own settings.
        → {"errors": what the pipeline says to it, "" where it says nothing}
    {"kind": "facts"} → {"stop": the pipeline's stop tokens}

Options: ``threads`` (INFERENCE_NUM_THREADS), ``inference_precision`` (INFERENCE_PRECISION_HINT).
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time

sys.modules.setdefault("openvino_telemetry", None)  # else "import openvino" writes a client id into the home


def versions():
    """Versions of the runtime and of numpy; imports the runtime."""
    import numpy
    import openvino
    import openvino_genai

    return {
        "openvino-genai": openvino_genai.__version__,
        "openvino": openvino.get_version(),
        "numpy": numpy.__version__,
    }


def probe():
    """Whether models can run here."""
    import openvino_genai

    return {"usable": True, "version": openvino_genai.__version__}


def load(path, options):
    """Open the model at ``path``; an unknown option is an error."""
    return Session(path, options)


class Session:
    """One model, opened as what the question needs: only one form of it is in memory at a time."""

    def __init__(self, path, options):
        import openvino
        import openvino_genai

        known = {"threads", "inference_precision", "placement", "profiling"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError("unknown option %s; known: inference_precision, threads" % unknown[0])
        self._ov, self._genai = openvino, openvino_genai
        self._path, self._folder = path, os.path.dirname(os.path.abspath(path))
        self._config = {"INFERENCE_NUM_THREADS": int(options["threads"])}
        if "inference_precision" in options:
            self._config["INFERENCE_PRECISION_HINT"] = options["inference_precision"]
        self._tokenizer = openvino_genai.Tokenizer(self._folder)
        self._form, self._opened = "", None
        self._pipeline()
        self._asked = {}
        self._answer = {}
        self._logits = None
        self.inputs = [_bytes("ask")]
        self.outputs = [_bytes("answer"), dict(_bytes("logits"), dtype="float32", shape=[None, None])]

    def _as(self, form, opened):
        if self._form != form:
            self._form, self._opened = "", None
            self._opened = opened()
            self._form = form
        return self._opened

    def _pipeline(self):
        opened = self._genai.LLMPipeline
        return self._as("pipeline", lambda: opened(self._folder, self._tokenizer, "CPU", **self._config))

    def _stateful(self):
        core = self._ov.Core()
        return self._as(
            "stateful", lambda: core.compile_model(self._path, "CPU", self._config).create_infer_request()
        )

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
        pipeline, words = self._pipeline(), self._tokenizer
        try:
            text = words.apply_chat_template(messages, add_generation_prompt=True)
        except Exception:  # noqa: BLE001 - a model without a template continues what was said
            text = messages[-1]["content"]
        given = words.encode(text, add_special_tokens=not words.chat_template)
        config = self._greedy(new, None)
        window = pipeline.get_generation_config().max_length
        left = window - given.input_ids.shape[1]
        if left < 1:
            raise ValueError("the conversation is longer than the window of %d tokens" % window)
        config.max_new_tokens = min(new, left)
        pieces = queue.Queue()
        done = object()

        def work():
            try:
                pipeline.generate(given, config, lambda piece: pieces.put(piece))
                pieces.put(done)
            except Exception as error:  # noqa: BLE001 - raised where the pieces are read
                pieces.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while True:
            piece = pieces.get()
            if piece is done:
                break
            if isinstance(piece, Exception):
                raise piece
            if piece:
                yield piece
        thread.join()

    def placement(self):
        """The pipeline does not tell what it executes where."""
        return {"runtime": "openvino-genai", "version": self._genai.__version__, "nodes": None}

    def _score(self, asked):
        import numpy

        tokens, prompt, keep = asked["tokens"], asked["prompt"], asked["keep"]
        request = self._stateful()
        request.reset_state()
        logprob, best, kept, times, done = [], [], [], [], 0
        for end in range(prompt, len(tokens) + 1):
            start = time.perf_counter()
            given = {
                "input_ids": numpy.asarray([tokens[done:end]], numpy.int64),
                "attention_mask": numpy.ones((1, end), numpy.int64),
                "position_ids": numpy.arange(done, end, dtype=numpy.int64)[None],
                "beam_idx": numpy.zeros(1, numpy.int32),
            }
            row = request.infer(given)["logits"][0, -1].copy()
            times.append((time.perf_counter() - start) * 1e3)
            done = end
            best.append(int(row.argmax()))
            if end > len(tokens) - keep:
                kept.append(row)
            if end < len(tokens):
                top = float(row.max())
                logprob.append(float(row[tokens[end]]) - top - float(numpy.log(numpy.exp(row - top).sum())))
        if kept:
            self._logits = numpy.stack(kept).astype(numpy.float32)
        return {"logprob": logprob, "best": best, "ms": times}

    def _paged(self, asked):
        try:
            pipeline = self._as("paged", lambda: self._opened_paged(asked["passages"][0]["prompt"]))
        except RuntimeError as error:
            if "ScaledDotProductAttention" not in str(error):
                raise
            return {"logprob": None}
        return {"logprob": [self._paged_score(pipeline, p) for p in asked["passages"]]}

    def _opened_paged(self, step):
        scheduler = self._genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = step
        opened = self._genai.ContinuousBatchingPipeline
        return opened(self._folder, self._tokenizer, scheduler, "CPU", **self._config)

    def _paged_score(self, pipeline, passage):
        import numpy

        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = 1, True, False
        config.echo, config.logprobs = True, 1  # the log-probability of each token of the prompt, too
        ids = self._ov.Tensor(numpy.asarray([passage["tokens"]], numpy.int64))
        handle = pipeline.add_request(0, ids, config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        found = handle.read_all()[0].generated_log_probs
        return [float(x) for x in found[passage["prompt"] : len(passage["tokens"])]]

    def _greedy(self, new, stop):
        """The most likely token, whatever the folder's settings for apps are."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens = new
        config.do_sample = False
        known = self._pipeline().get_generation_config()
        config.eos_token_id = known.eos_token_id if stop is None else stop[0]
        config.stop_token_ids = known.stop_token_ids if stop is None else set(stop)
        config.apply_chat_template = False
        return config

    def _generate(self, asked):
        import numpy

        tokens, new, stop = asked["tokens"], asked["new"], asked.get("stop")
        pipeline, config = self._pipeline(), self._greedy(new, stop)
        ids = self._ov.Tensor(numpy.asarray([tokens], numpy.int64))
        found = pipeline.generate(ids, config)
        made = [int(t) for t in found.tokens[0]]
        raw = found.perf_metrics.raw_metrics
        times = [float(raw.m_times_to_first_token[0]), *(float(t) for t in raw.m_durations)]
        ended = bool(made) and made[-1] in config.stop_token_ids
        return dict({"tokens": made, "ended": ended, "ms": times}, **_memory())

    def _stops(self, asked):
        free = self._generate(dict(asked, stop=None))["tokens"]
        stop = free[min(asked["after"], len(free) - 1)]
        again = self._generate(dict(asked, stop=[stop]))
        return {"free": free, "stop": stop, "stopped": again["tokens"], "ended": again["ended"]}

    def _encoded(self, text, special):
        return [int(t) for t in self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0]]

    def _text(self, asked):
        ids = [self._encoded(text, True) for text in asked["texts"]]
        back = [self._tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        return {"ids": ids, "back": back, "chats": [self._chat(c) for c in asked["chats"]]}

    def _chat(self, chat):
        more = {} if chat.get("tools") is None else {"tools": chat["tools"]}
        try:
            text = self._tokenizer.apply_chat_template(
                chat["messages"], add_generation_prompt=chat["prompt"], **more
            )
        except Exception as error:  # noqa: BLE001 - its words are the answer
            return {"error": str(error)[:500]}
        return {"text": text, "ids": self._encoded(text, False)}

    def _window(self, asked):
        import numpy

        ids = self._ov.Tensor(numpy.zeros((1, asked["window"] + 1), numpy.int64))
        config = self._pipeline().get_generation_config()
        config.apply_chat_template = False
        stopped = self._genai.StreamingStatus.STOP
        try:
            self._pipeline().generate(ids, config, lambda _: stopped)
        except Exception as error:  # noqa: BLE001 - its words are the answer
            return {"errors": [str(error)[:500]]}
        return {"errors": [""]}

    def _facts(self, asked):  # noqa: ARG002
        return {"stop": sorted(int(t) for t in self._pipeline().get_generation_config().stop_token_ids)}


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
