"""Structured pruning: the cut model computes what the masked one does, its export is smaller, plans repeat."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.compress.plan import save  # noqa: E402
from edgekit.compress.run import run  # noqa: E402
from edgekit.compress.step import Context, forward, rebuild  # noqa: E402
from edgekit.compress.structured import attention  # noqa: E402
from edgekit.compress.structured.cut import Plan, apply  # noqa: E402
from edgekit.compress.structured.depth import Depth  # noqa: E402
from edgekit.compress.structured.groups import analyse  # noqa: E402
from edgekit.compress.structured.rules_shape import _factors  # noqa: E402
from edgekit.compress.structured.shrink import Shrink  # noqa: E402
from edgekit.compress.training.settings import Training  # noqa: E402
from edgekit.errors import ConfigError, SourceError, UsageError  # noqa: E402
from edgekit.graph.nested import flatten  # noqa: E402

Inputs = dict[str, Tensor]
TOLERANCE = 1e-4  # relative to the largest output: the same sums in another order


def conv(i: int, o: int, k: int = 3, groups: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o))


class OptionA(nn.Module):
    """Shortcuts that are strided and padded with zero channels, by a lambda with its own constants."""

    class Block(nn.Module):
        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.a, self.b = conv(i, o, stride=o // i), conv(o, o)
            self.short: Callable[[Tensor], Tensor] = lambda x: x
            if i != o:
                self.short = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, o // 4, o // 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.short(x) + self.b(F.relu(self.a(x))))

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16), self.Block(16, 16), self.Block(16, 32), self.Block(32, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Shuffle(nn.Module):
    """ShuffleNetV2: chunk, concatenation, shuffle by view and transpose."""

    class Unit(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            half = c // 2
            self.branch = nn.Sequential(
                conv(half, half, 1), nn.ReLU(), conv(half, half, groups=half), conv(half, half, 1), nn.ReLU()
            )

        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, dim=1)
            y = torch.cat([a, self.branch(b)], 1)
            n, c, h, w = y.shape
            return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 32), self.Unit(32), self.Unit(32), conv(32, 128, 1), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.rnn = kind(24, 32, 2, batch_first=True, bidirectional=True, **options)
        self.out = nn.Linear(2 * (options.get("proj_size") or 32), 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0])


class Mobile(nn.Module):
    """Depthwise, squeeze and excite, hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv(3, 16), conv(16, 64, 1)
        self.deep, self.project = conv(64, 64, groups=64), conv(64, 16, 1)
        self.down, self.up = nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 1)
        self.last, self.head = conv(16, 96, 1), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.deep(F.hardswish(self.expand(x))))
        y = y * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        y = F.hardswish(self.last(x + self.project(y)))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Dense(nn.Module):
    """DenseNet, and the branches of Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.layers = nn.ModuleList(conv(16 + 16 * i, 16) for i in range(3))
        self.branches = nn.ModuleList((conv(64, 16, 1), conv(64, 24, 3), conv(64, 24, 5)))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(self.stem(x))]
        for layer in self.layers:
            parts.append(F.relu(layer(torch.cat(parts, 1))))
        x = F.max_pool2d(torch.cat(parts, 1), 2)
        x = torch.cat([F.relu(branch(x)) for branch in self.branches], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.join = conv(3, 16), conv(16, 32), conv(32, 16)
        self.norm, self.up = nn.GroupNorm(4, 32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.one(x))
        b = F.silu(self.norm(self.two(F.avg_pool2d(a, 2))))
        return self.head(F.relu(self.join(torch.cat([a, self.up(b)], 1))))


class Grouped(nn.Module):
    """ResNeXt: grouped but not depthwise, then flattened with its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 32, 1), conv(32, 32, 3, groups=8), conv(32, 24, 1)
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.head(F.max_pool2d(y, 2).flatten(1))


class Fused(nn.Module):
    """A vision transformer's block with fused q, k, v and a class token, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 1, 32))
        self.place = nn.Parameter(torch.randn(1, 5, 32))
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.proj, self.heads = nn.Linear(32, 96), nn.Linear(32, 32), 4
        self.fc1, self.fc2, self.head = nn.Linear(32, 128), nn.Linear(128, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        return self.head((x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))[:, 0])


class Encoder(nn.Module):
    """PyTorch's own transformer, whose attention takes the width of its heads from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(ids)))


def bert() -> nn.Module:
    import transformers as t

    config = t.BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=16,
    )  # fmt: skip
    return t.BertForSequenceClassification(config)


def gpt() -> nn.Module:
    import transformers as t

    config = t.GPT2Config(
        vocab_size=20, n_embd=32, n_layer=2, n_head=4, n_positions=16, use_cache=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return t.GPT2LMHeadModel(config)


IMAGE: Inputs = {"x": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
IDS: Inputs = {"ids": torch.arange(12).reshape(2, 6)}
ZOO: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "option A": (OptionA, IMAGE),
    "shufflenet": (Shuffle, IMAGE),
    "lstm": (lambda: Recurrent(nn.LSTM), IDS),
    "lstm with projection": (lambda: Recurrent(nn.LSTM, proj_size=8), IDS),
    "gru": (lambda: Recurrent(nn.GRU), IDS),
    "mobilenet": (Mobile, IMAGE),
    "densenet": (Dense, IMAGE),
    "unet": (UNet, IMAGE),
    "resnext": (Grouped, IMAGE),
    "vit": (Fused, IMAGE),
    "encoder": (Encoder, IDS),
    "bert": (bert, {"input_ids": IDS["ids"], "attention_mask": torch.ones(2, 6, dtype=torch.int64)}),
    "gpt": (gpt, {"input_ids": IDS["ids"]}),
}


def build(name: str) -> tuple[nn.Module, Inputs]:
    """With random biases and statistics: zeros would hide mistakes."""
    torch.manual_seed(0)
    model = ZOO[name][0]().eval()
    for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor_name.endswith(("bias", "running_mean")):
            tensor.data = torch.randn_like(tensor) * 0.1
    return model, ZOO[name][1]


def worst(a: object, b: object) -> float:
    one, two = flatten(a), flatten(b)
    return max(float((one[n] - two[n]).abs().max() / one[n].abs().max()) for n in one)


def zeroed(model: nn.Module, plan: Plan) -> nn.Module:
    """Written anew, so that the product does not check itself."""
    masked = copy.deepcopy(model)
    parameters = dict(masked.named_parameters())
    for (name, dim), kept in plan.kept.items():
        if name in parameters:
            gone = [i for i in range(parameters[name].shape[dim]) if i not in set(kept.tolist())]
            parameters[name].data.index_fill_(dim, torch.tensor(gone), 0.0)
    return masked


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_cut_equals_masked_and_halves_what_runs(name: str, scope: str) -> None:
    model, inputs = build(name)
    whole, context = attention.replace(model), Context(example_inputs=inputs)
    cut, report = run(copy.deepcopy(whole), (Shrink(macs=0.5, scope=scope, multiple=2),), context)
    step = report.steps[0]
    if not any(isinstance(m, nn.RNNBase) for m in model.modules()):  # of which FlopCounter knows nothing
        assert step.after.macs <= 0.52 * step.before.macs
    plan = Plan.from_tensors({k.partition("/")[2]: v for k, v in context.tensors.items()})
    with torch.no_grad():
        assert worst(forward(zeroed(whole, plan), inputs), forward(cut, inputs)) < TOLERANCE


@pytest.mark.parametrize("name", ["option A", "lstm", "mobilenet", "bert", "gpt"])
def test_the_exported_graph_is_halved(name: str, tmp_path: Path) -> None:
    from edgekit.graph.export import export
    from edgekit.graph.io import read_proto
    from edgekit.graph.macs import count_macs
    from edgekit.load.module import bind

    def exported(model: nn.Module) -> tuple[int, int]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        export(bind(model, inputs, what="the test"), path)
        weights = [t for t in read_proto(path).graph.initializer if t.data_type == 1]
        return sum(int(np.prod(t.dims)) for t in weights), sum(n.macs or 0 for n in count_macs(path))

    model, inputs = build(name)
    before = exported(model)
    after = exported(
        Shrink(macs=0.5, parameters=0.5, multiple=2).apply(model, Context(example_inputs=inputs))
    )
    assert after[0] <= 0.52 * before[0]
    assert after[1] <= 0.52 * before[1]


@pytest.mark.parametrize("name", ["option A", "gru", "encoder", "bert", "resnext"])
def test_a_plan_cuts_a_fresh_module_again(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (model, inputs), (fresh, _) = build(name), build(name)
    step, context = Shrink(macs=0.6, rounds=2, multiple=1), Context(example_inputs=inputs)
    cut, report = run(model, (step,), context)
    save(tmp_path, cut, (step,), report, context)
    tensors = {k.partition("/")[2]: v for k, v in load_file(tmp_path / "plan.safetensors").items()}
    again = rebuild(step, fresh, tensors, load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert worst(forward(cut, inputs), forward(again, inputs)) == 0
    assert {n: tuple(p.shape) for n, p in again.named_parameters()} == {
        n: tuple(p.shape) for n, p in cut.named_parameters()
    }


def test_attributes_follow_in_hugging_face_models() -> None:
    model, inputs = build("bert")
    Shrink(macs=0.5, scope="layer", multiple=1).apply(model, Context(example_inputs=inputs))
    for layer in model.bert.encoder.layer:
        own = layer.attention.self
        assert own.num_attention_heads < 4
        assert own.attention_head_size == 8
        assert own.all_head_size == own.query.out_features == 8 * own.num_attention_heads
        assert layer.attention.output.dense.in_features == own.all_head_size
        assert layer.intermediate.dense.out_features == layer.output.dense.in_features < 128
    assert model.config.hidden_size == model.bert.embeddings.word_embeddings.embedding_dim == 32


def test_layers_say_what_their_weights_are() -> None:
    model, inputs = build("mobilenet")
    Shrink(macs=0.4).apply(model, Context(example_inputs=inputs))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == module.weight.shape[0]
            assert module.in_channels == module.weight.shape[1] * module.groups
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_var) == len(module.weight)
    assert model.deep[0].groups == model.deep[0].out_channels < 64


class Baked(nn.Module):
    """Sizes written into ``forward`` where nothing can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x)).view(-1, 8, 8).transpose(1, 2).reshape(-1, 64)
        return self.c(torch.relu(self.b(y)))


def test_what_cannot_follow_is_left_alone_and_named() -> None:
    torch.manual_seed(0)
    model, context = Baked().eval(), Context(example_inputs={"x": torch.randn(3, 8)})
    Shrink(macs=0.6).apply(model, context)
    assert model.a.out_features == 64
    assert model.b.out_features < 40
    assert [k for k in context.tensors if k.endswith("|left")] == ["a.weight|left"]


class Strange(nn.Module):
    """An operator that no rule follows, between layers that can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.fft(self.a(x)).real
        return self.c(torch.relu(self.b(y)))


def test_operators_that_cannot_be_followed_stay() -> None:
    torch.manual_seed(0)
    model, inputs = Strange().eval(), {"x": torch.randn(3, 8)}
    assert "aten._fft_r2c" in analyse(model, inputs).unknown
    Shrink(macs=0.6).apply(model, Context(example_inputs=inputs))
    assert model.a.out_features == model.b.in_features == 32
    assert model.b.out_features < 64


def test_heads_that_start_at_zero_do_not_hide_mistakes() -> None:
    torch.manual_seed(0)
    model = Baked().eval()
    nn.init.zeros_(model.c.weight)
    nn.init.zeros_(model.c.bias)
    Shrink(macs=0.6).apply(model, Context(example_inputs={"x": torch.randn(3, 8)}))
    assert model.a.out_features == 64
    assert not model.c.weight.any()


def test_a_norm_over_channels_keeps_them_unless_asked() -> None:
    model, inputs = build("vit")
    assert all(("norm1.weight", 0) not in g.places for g in analyse(model, inputs).groups)
    Shrink(macs=0.5, widths=True, scope="layer").apply(model, Context(example_inputs=inputs))
    assert model.norm1.normalized_shape == (model.norm1.weight.shape[0],)
    assert model.norm1.weight.shape[0] < 32
    assert forward(model, inputs).shape == (2, 10)


def test_what_stays_is_a_multiple() -> None:
    model, inputs = build("densenet")
    Shrink(macs=0.5, multiple=8).apply(model, Context(example_inputs=inputs))
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(w % 8 == 0 for w in widths)
    assert sum(widths) < 16 * 4 + 64


def test_the_least_important_go_first() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight[::2] *= 1e-3
        model[2].weight[:, ::2] *= 1e-3
    context = Context(example_inputs={"x": torch.randn(2, 4)})
    Shrink(macs=0.5, multiple=1).apply(model, context)
    assert context.tensors["0.weight|0|keep"].tolist() == list(range(1, 16, 2))


class Blobs:
    """Three clouds in eight dimensions."""

    metric_name, fingerprint = "accuracy", "blobs"

    def __init__(self) -> None:
        self.y = torch.arange(300) % 3
        self.x = (
            torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 2 * torch.eye(8)[self.y]
        )

    def steps(self) -> int:
        return 10

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed + epoch))
        return iter([(self.x[i], self.y[i]) for i in order.split(30)])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.x).argmax(1) == self.y).float().mean())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "bn", "random"])
def test_rounds_with_training_between(criterion: str) -> None:
    torch.manual_seed(0)
    task, model = Blobs(), Residual().eval()
    step = Shrink(macs=0.4, criterion=criterion, rounds=3, training=Training(epochs=9, rate=1e-2), multiple=4)
    context = Context(task=task, example_inputs={"x": task.x[:2]})
    model, report = run(model, (step,), context)
    assert report.steps[0].after.macs <= 0.42 * report.steps[0].before.macs
    assert task.metric(model) > 0.9
    torch.manual_seed(0)
    fresh = rebuild(
        step, Residual(), {k.partition("/")[2]: v for k, v in context.tensors.items()}, model.state_dict()
    )
    assert torch.equal(fresh(task.x), model(task.x))


class Answers(Blobs):
    """Any inputs; only what the net makes of them counts."""

    def __init__(self, *shape: int) -> None:
        random = torch.Generator().manual_seed(5)
        self.x, self.y = torch.randn(300, *shape, generator=random), torch.zeros(300, dtype=torch.int64)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]).square().mean()

    def metric(self, model: nn.Module) -> float:
        return 0.0


def test_what_cut_channels_said_is_told_from_the_others() -> None:
    """Twelve of 24 channels are mixtures of the other twelve: without them nothing is lost."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 5, 3, stride=2, padding=1, dilation=2)
    )
    with torch.no_grad():
        mix = torch.randn(12, 12) / 12
        model[0].weight[12:] = torch.einsum("oi,ichw->ochw", mix, model[0].weight[:12])
        model[0].bias[12:] = mix @ model[0].bias[:12]
    whole, task = copy.deepcopy(model).eval(), Answers(3, 9, 9)
    seen = torch.randn(20, 3, 9, 9)
    wanted = whole(seen)
    errors = {}
    for refit in (False, True):
        context = Context(task=task, example_inputs={"input": seen[:1]})
        cut = Shrink(macs=0.5, multiple=1, refit=refit).apply(copy.deepcopy(whole), context)
        assert cut[1].in_channels == 12
        errors[refit] = float((cut(seen) - wanted).detach().norm() / wanted.detach().norm())
    assert errors[False] > 0.05
    assert errors[True] < 0.01


def test_refitting_follows_the_order_of_the_run_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    task, model = Answers(8), Residual()
    for p in model.parameters():
        p.data.mul_(1.5)
    inputs = {"x": task.x[:2]}
    lost = {}
    for refit in (False, True):
        step = Shrink(macs=0.6, multiple=2, leave="stem", refit=refit)
        cut = step.apply(copy.deepcopy(model), Context(task=task, example_inputs=inputs))
        lost[refit] = float((cut(task.x) - model.eval()(task.x)).detach().norm())
        for name, tensor in cut.named_parameters():
            read = name.startswith("blocks") and name.endswith(("3.weight", "3.bias"))
            if not read and tensor.shape == model.get_parameter(name).shape:
                assert torch.equal(tensor, model.get_parameter(name)), name
    assert lost[True] < 0.6 * lost[False]


@pytest.mark.parametrize("criterion", ["similarity", "metric"])
def test_depth_takes_out_the_layers_that_do_least(criterion: str) -> None:
    torch.manual_seed(0)
    task, model = Blobs(), Residual().eval()

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
            self.layers = nn.Sequential(*(Wrapped() for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(self.stem(x)))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    model = Blocks().eval()
    with torch.no_grad():
        for i in (1, 3):
            model.layers[i].inner.weight.zero_()
            model.layers[i].inner.bias.zero_()
    fresh, before = copy.deepcopy(model), model(task.x)
    step, context = (
        Depth(share=0.5, criterion=criterion),
        Context(task=task, example_inputs={"x": task.x[:2]}),
    )
    model = step.apply(model, context)
    if criterion == "similarity":
        assert sorted(context.tensors) == ["layers.1|skip", "layers.3|skip"]
        torch.testing.assert_close(model(task.x), before)
    assert sum(1 for _ in model.parameters()) == 8
    again = rebuild(step, fresh, context.tensors, model.state_dict())
    assert torch.equal(again(task.x), model(task.x))


def test_depth_of_a_hugging_face_encoder() -> None:
    model, inputs = build("bert")
    Depth(share=0.5).apply(model, Context(example_inputs=inputs))
    assert sum("layer" in n and n.endswith("query.weight") for n, _ in model.named_parameters()) == 1
    assert torch.isfinite(forward(model, inputs).logits).all()


@pytest.mark.parametrize("mask", ["none", "padding", "causal"])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("kdim", [None, 6])
def test_attention_is_pytorchs(mask: str, weights: bool, kdim: int | None) -> None:
    torch.manual_seed(0)
    base = nn.MultiheadAttention(16, 4, batch_first=kdim is None, kdim=kdim, vdim=kdim).eval()
    x = torch.randn(3, 3, 16)
    other = x if kdim is None else torch.randn(3, 3, kdim)
    padding = torch.tensor([[False, False, True]] * 3) if mask == "padding" else None
    causal = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1) if mask == "causal" else None
    expected = base(x, other, other, key_padding_mask=padding, attn_mask=causal, need_weights=weights)
    state = base.state_dict()
    ours = attention.replace(base).eval()
    found = ours(x, other, other, key_padding_mask=padding, attn_mask=causal, need_weights=weights)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if weights:
        torch.testing.assert_close(found[1], expected[1])
    ours.load_state_dict(state)


def test_factors_of_a_reshape() -> None:
    found = _factors([3 * 12 * 64], [3, 12, 64])
    assert found is not None
    assert found.sizes == (3, 12, 64)
    assert (found.left, found.right) == ((range(3),), (range(1), range(1, 2), range(2, 3)))
    assert _factors([4, 6], [3, 8]) is None


def test_wrong_options_and_hopeless_models_are_refused() -> None:
    for wrong in ({"macs": 0.0}, {"criterion": "luck"}, {"scope": "world"}, {"multiple": 0}, {"most": 1.0}):
        with pytest.raises(ConfigError):
            Shrink(**wrong)
    model, inputs = build("mobilenet")
    with pytest.raises(UsageError, match="example inputs"):
        Shrink().apply(model, Context())
    with pytest.raises(UsageError, match="leaves"):
        Shrink(macs=0.001).apply(model, Context(example_inputs=inputs))
    with pytest.raises(ConfigError, match="no layer"):
        Shrink(leave="nothing").apply(model, Context(example_inputs=inputs))
    with pytest.raises(SourceError, match="nothing"):
        Shrink().apply(nn.Linear(4, 3), Context(example_inputs={"input": torch.randn(1, 4)}))
    with pytest.raises(ConfigError, match="does not have"):
        apply(nn.Linear(4, 3), Plan(kept={("other", 0): np.array([0])}, attributes={}))


def test_layers_to_leave_stay_whole() -> None:
    model, inputs = build("mobilenet")
    Shrink(macs=0.7, leave="last, stem").apply(model, Context(example_inputs=inputs))
    assert model.last[0].out_channels == 96
    assert model.stem[0].out_channels == 16
