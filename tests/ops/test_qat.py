"""Quantization-aware training: learnt steps, batch norms, plans that replay, integers in the exported file."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import onnx_ir as ir  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.compress.plan import rebuilt, save  # noqa: E402
from edgekit.compress.registry import parse  # noqa: E402
from edgekit.compress.run import run  # noqa: E402
from edgekit.compress.step import Context, spell  # noqa: E402
from edgekit.compress.steps import batch_norm as norms  # noqa: E402
from edgekit.compress.steps.prune import Prune  # noqa: E402
from edgekit.compress.steps.qat import Qat, parse_bits  # noqa: E402
from edgekit.compress.steps.qat_layers import Levels, quantized  # noqa: E402
from edgekit.compress.training.settings import Training  # noqa: E402
from edgekit.compress.training.train import fit  # noqa: E402
from edgekit.errors import ComposeError, ConfigError, SourceError, UsageError  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402
from edgekit.types import TorchModel  # noqa: E402

SHORT = Training(epochs=2.0, rate=1e-3)


class Stripes:
    """Pictures of one colour with a stripe: four classes by its direction and brightness, in noise."""

    metric_name, fingerprint = "accuracy", "stripes"

    def __init__(self, kill_after: int = 0) -> None:
        random = torch.Generator().manual_seed(0)
        self.y = torch.arange(192) % 4
        self.x = torch.randn(192, 3, 12, 12, generator=random) * 0.4
        for x, y in zip(self.x, self.y, strict=True):
            place = int(torch.randint(12, (), generator=random))
            line = x[:, place] if y < 2 else x[:, :, place]
            line += 2.0 if y % 2 else -2.0
        self.kill_after, self.losses = kill_after, 0

    def steps(self) -> int:
        return 6

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for pick in torch.randperm(192).split(32):
            yield self.x[pick], self.y[pick]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.losses += model.training
        if self.losses == self.kill_after > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.x).argmax(1) == self.y).float().mean())


class Net(nn.Module):
    """Batch norms behind a convolution, a depthwise one and a transposed one; one that cannot be folded; a shared
    input; a residual addition; a linear layer on three axes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stem_norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(width)
        self.left, self.right = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.before = nn.BatchNorm2d(width)
        self.up, self.up_norm = nn.ConvTranspose2d(width, width, 2, 2), nn.BatchNorm2d(width)
        self.rows = nn.Linear(width, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(image)))
        y = F.relu(self.depthwise_norm(self.depthwise(x)))
        y = self.before(self.left(y) + self.right(y) + x)
        y = F.relu(self.up_norm(self.up(y)))
        rows = self.rows(y.mean(3).transpose(1, 2))
        return self.head(F.gelu(rows).amax(1))


EXAMPLE = {"image": torch.zeros(2, 3, 12, 12)}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = Net()
    fit(model, Stripes(), Training(epochs=25.0, rate=5e-3), seed=0)
    assert Stripes().metric(model) > 0.95
    return model


def applied(model: nn.Module, step: Qat) -> tuple[nn.Module, Context]:
    context = Context(task=Stripes(), example_inputs=EXAMPLE, seed=1)
    made, _ = run(copy.deepcopy(model), (step,), context)
    return made, context


# --- the gradient ---------------------------------------------------------------------------------------------


def test_the_gradients_are_those_of_the_paper() -> None:
    levels, features = Levels.of_weight(4), 10
    x = torch.tensor([-9.3, -6.6, -0.4, 0.2, 3.7, 8.2]).mul(0.5).requires_grad_()
    step = torch.tensor(0.5, requires_grad=True)
    out = quantized(x, step, levels, features=features)
    assert torch.equal(out, torch.tensor([-7.0, -7, 0, 0, 4, 7]) * 0.5)
    out.sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1, 1, 1, 1, 0]))
    inside = sum(round(v) - v for v in (-6.6, -0.4, 0.2, 3.7))
    assert float(step.grad) == pytest.approx((inside - 7 + 7) / math.sqrt(features * 7), abs=1e-5)


def test_a_step_learns_its_range() -> None:
    from edgekit.compress.steps.qat_layers import LearnedInput

    torch.manual_seed(0)
    x = torch.randn(64, 100)
    quantizer = LearnedInput(1e-3, 0, torch.int8, learned=True)  # clips nearly everything
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.5)
    before = float((quantizer(x) - x).square().mean().detach())
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    after = float((quantizer(x) - x).square().mean().detach())
    assert after < before / 100


def test_half_precision_tells_255_levels_apart() -> None:
    values = torch.arange(-127, 128)
    x = (values * 0.25).bfloat16()
    assert torch.equal(quantized(x, torch.tensor(0.25), Levels.of_weight(8)), x)


# --- batch norms ------------------------------------------------------------------------------------------------


def flat(model: nn.Module) -> Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return model(torch.randn(4, 3, 12, 12)).flatten()


def test_batch_norms_that_can_be_folded_are_found(trained: nn.Module) -> None:
    layers = [n for n, m in trained.named_modules() if hasattr(m, "weight") and "norm" not in n]
    found = norms.pairs(trained, [n for n in layers if n != "before"], flat)
    assert found == {"stem": "stem_norm", "depthwise": "depthwise_norm", "up": "up_norm"}


def test_a_pair_that_computes_something_else_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.norm(y) + y  # what is folded would change y here as well

    model = Twice().eval()
    model.norm.running_mean += 1
    model.norm.running_var *= 3
    run_it = lambda m: m(torch.ones(2, 4)).detach().flatten()  # noqa: E731
    assert norms.pairs(model, ["a"], run_it) == {}


@pytest.mark.parametrize("mode", ["freeze", "train"])
def test_folding_into_scales_is_exact(trained: nn.Module, mode: str) -> None:
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model.stem_norm.weight[:3] *= -1  # turns the integers' sign
        model.stem_norm.weight[4] = 0
    early, _ = applied(model, Qat(batch_norm="fold", range="minmax", refit=False))
    late, _ = applied(model, Qat(batch_norm=mode, range="minmax", refit=False))
    assert torch.allclose(flat(early), flat(late), rtol=1e-3, atol=1e-3)
    kinds = Counter(type(m).__name__ for m in late.modules())
    assert kinds["Identity"] == 3
    assert kinds["BatchNorm2d"] == 1


def test_statistics_are_held(trained: nn.Module) -> None:
    before = trained.before.running_mean.clone()
    held, _ = applied(trained, Qat(training=SHORT))
    moved, _ = applied(trained, Qat(training=SHORT, batch_norm="train"))
    assert torch.equal(held.before.running_mean, before)
    assert not torch.equal(moved.before.running_mean, before)


# --- the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        Qat(),
        Qat(weights=4, activations=16, layers="head=8/8,rows=0", training=SHORT),
        Qat(weights=3, symmetric=True, batch_norm="train", training=SHORT),
        Qat(activations=0, per_channel=False, steps="fixed", training=SHORT),
    ],
    ids=spell,
)
def test_a_plan_replays_to_the_same_numbers(trained: nn.Module, step: Qat, tmp_path: Path) -> None:
    made, context = applied(trained, step)
    assert parse(spell(step)) == step
    fresh = rebuilt(Net(), (step,), context.tensors, made.state_dict())
    assert torch.equal(flat(made), flat(fresh))
    for name in ("a", "b"):
        again, context = applied(trained, step)
        _, report = run(copy.deepcopy(trained), (), Context())
        save(tmp_path / name, again, (step,), report, context)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_integers_are_what_was_asked_for(trained: nn.Module) -> None:
    made, _ = applied(trained, Qat(weights=4, layers="head=8/16,rows=0"))
    state = made.state_dict()
    assert int(state["left.parametrizations.weight.original0"].abs().max()) <= 7
    assert state["left.parametrizations.weight.original0"].dtype == torch.int8
    assert 7 < int(state["head.parametrizations.weight.original0"].abs().max()) <= 127
    assert state["head.input_quantizer.zero_point"].dtype == torch.int16
    assert state["left.input_quantizer.zero_point"].dtype == torch.uint8
    assert state["rows.weight"].dtype == torch.float32
    assert made.left.input_quantizer is made.right.input_quantizer  # they read the same tensor


def test_training_mends_what_few_bits_cost(trained: nn.Module) -> None:
    task, coarse = Stripes(), Qat(weights=2, per_channel=False, range="minmax")
    after, _ = applied(trained, coarse)
    learnt, _ = applied(trained, dataclasses.replace(coarse, training=Training(epochs=15.0, rate=2e-3)))
    assert task.metric(after) < 0.8
    assert task.metric(learnt) > 0.9


def test_pruned_weights_stay_zero(trained: nn.Module) -> None:
    cut = Prune(sparsity=0.5).apply(copy.deepcopy(trained), Context())
    made, _ = applied(cut, Qat(weights=4, training=SHORT))
    for name in ("stem", "left", "up", "rows"):
        zero = cut.get_submodule(name).weight == 0
        assert zero.any()
        assert not made.get_submodule(name).weight[zero].any()


def test_gradients_still_reach_what_comes_before(trained: nn.Module) -> None:
    made, _ = applied(trained, Qat())
    made(torch.randn(2, 3, 12, 12)).sum().backward()
    assert made.stem.bias.grad is not None
    assert float(made.stem.bias.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    "text",
    ["qat(weights=1)", "qat(weights=9)", "qat(activations=4)", "qat(steps=guessed)", "qat(range=all)",
     "qat(batch_norm=drop)", "qat(batches=0)", "qat(per_channel=false;batch_norm=train)", "qat(layers=fc)",
     "qat(layers=fc=1)", "qat(layers=fc=8/4)"],
)  # fmt: skip
def test_wrong_options_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_what_cannot_be_done_is_refused(trained: nn.Module) -> None:
    with pytest.raises(ConfigError, match="no layer"):
        applied(trained, Qat(layers="nothing=8"))
    with pytest.raises(SourceError, match="no linear or convolution"):
        Qat().apply(nn.ReLU(), Context(task=Stripes(), example_inputs=EXAMPLE))
    with pytest.raises(UsageError, match="ranges come from data"):
        Qat().apply(copy.deepcopy(trained), Context(example_inputs=EXAMPLE))
    made, _ = applied(trained, Qat())
    with pytest.raises(ComposeError, match="made integers of all"):
        applied(made, Qat())
    assert parse_bits("a=8,b*=4/16") == [("a", (8, None)), ("b*", (4, 16))]


def test_a_plan_of_another_model_is_refused(trained: nn.Module) -> None:
    made, context = applied(trained, Qat())
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(SourceError, match="no such layer"):
        rebuilt(other, (Qat(),), context.tensors, made.state_dict())
    with pytest.raises(SourceError, match="do not fit"):
        rebuilt(Net(width=16), (Qat(),), context.tensors, made.state_dict())


def test_mixed_precision_trains_on_the_same_grid(trained: nn.Module) -> None:
    pytest.importorskip("lightning_fabric")
    made, _ = applied(trained, Qat(weights=4, training=Training(epochs=2.0, rate=1e-3, precision="bf16")))
    assert Stripes().metric(made) > 0.9
    assert {p.dtype for p in made.parameters()} == {torch.float32, torch.int8}


def test_weights_alone_need_no_data(trained: nn.Module) -> None:
    made = Qat(weights=8, activations=0).apply(copy.deepcopy(trained), Context(example_inputs=EXAMPLE))
    assert torch.allclose(flat(made), flat(trained.eval()), atol=0.15)


PROGRAM = """
import sys, pathlib
sys.path.insert(0, {folder!r})
from test_qat import EXAMPLE, Net, Qat, Stripes
from edgekit.compress.training.settings import Loop, looping
from edgekit.compress.run import run
from edgekit.compress.step import Context
from edgekit.compress.training.settings import Training
from safetensors.torch import save_file
task = Stripes(int(sys.argv[3]))
step = Qat(weights=4, batch_norm="train", training=Training(epochs=3.0, rate=1e-3))
with looping(Loop(checkpoint_s=0.0)):
    context = Context(task=task, example_inputs=EXAMPLE, seed=3)
    model, _ = run(Net(), (step,), context, work=pathlib.Path(sys.argv[1]), judged=False)
save_file({{k: v.clone() for k, v in model.state_dict().items()}}, sys.argv[2])
"""


def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(folder=str(Path(__file__).parent)))

    def start(name: str, kill_after: int) -> int:
        command = [
            sys.executable,
            str(program),
            str(tmp_path / name),
            str(tmp_path / f"{name}.out"),
            str(kill_after),
        ]
        return subprocess.run(command, check=False, timeout=300).returncode

    assert start("whole", 0) == 0
    assert start("killed", 9) == -9
    assert start("killed", 0) == 0
    assert (tmp_path / "whole.out").read_bytes() == (tmp_path / "killed.out").read_bytes()


# --- the exported file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "weight", "activation"),
    [
        (Qat(), ir.DataType.INT8, ir.DataType.UINT8),
        (Qat(symmetric=True), ir.DataType.INT8, ir.DataType.INT8),
        (Qat(weights=4), ir.DataType.INT4, ir.DataType.UINT8),
        (Qat(weights=4, activations=16, batch_norm="freeze"), ir.DataType.INT4, ir.DataType.INT16),
        (Qat(weights=3, per_channel=False), ir.DataType.INT4, ir.DataType.UINT8),
    ],
    ids=lambda v: spell(v) if isinstance(v, Qat) else str(v),
)
def test_the_file_holds_integers_and_computes_the_same(
    trained: nn.Module, step: Qat, weight: ir.DataType, activation: ir.DataType, tmp_path: Path
) -> None:
    made, _ = applied(trained, step)
    source = TorchModel(module=made, example_inputs=EXAMPLE, dynamic_axes={"image": {0: "batch"}})
    written, report = export.export_with_report(source, tmp_path / "model.onnx")
    assert report.strategy.startswith("torch.export")
    wide = max(weight.bitwidth < 8, activation.bitwidth > 8)
    assert written.opset == (21 if wide else export.OPSET)
    optimized = passes.optimize(written, tmp_path / "optimized.onnx")
    for model in (written, optimized):
        found = io.load(model.path).graph
        stored = {n: v for n, v in found.initializers.items() if n.endswith(".weight_quantized")}
        assert len(stored) == 7
        assert {v.dtype for v in stored.values()} == {weight}
        rounded = {n.outputs[0].dtype for n in found if n.op_type == "QuantizeLinear"}
        assert rounded == {activation}
        floats = [v for v in found.initializers.values() if v.dtype == ir.DataType.FLOAT and v.shape]
        assert max(len(v.shape) for v in floats) <= 2  # biases and scales: no weight went back to float
    x = Stripes().x[:64]
    with torch.no_grad():
        expected = made(x).numpy()
    got = io.run(io.session(optimized.path), {"image": x.numpy()})["output"]
    step_of_head = float(made.head.input_quantizer.scale) * float(made.head.weight.abs().sum(1).max())
    assert np.abs(got - expected).max() <= step_of_head + 1e-4


def test_a_large_four_bit_weight_takes_half_a_byte(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512))
    made = Qat(weights=4, activations=0).apply(model, Context(example_inputs={"x": torch.zeros(1, 1024)}))
    written = export.export(
        TorchModel(module=made, example_inputs={"input": torch.zeros(1, 1024)}), tmp_path / "m.onnx"
    )
    integers = (1024 * 1024 + 1024 * 512) // 2
    floats = 2 * (1024 + 512) * 4
    assert written.path.stat().st_size <= 1.05 * (integers + floats)
