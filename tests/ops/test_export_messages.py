"""What is said of a module that cannot be exported names what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from edgekit import load  # noqa: E402
from edgekit.errors import ExportError  # noqa: E402
from edgekit.graph import export  # noqa: E402


class Of(torch.nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Any) -> Any:
        return self.what(x)


MODULES = {
    "a branch on values": (lambda x: x * 2 if x.sum() > 0 else x - 1, "torch.cond"),
    "complex numbers": (lambda x: torch.fft.fft(x).cumsum(0).abs(), "complex numbers (aten::"),
    "an operator that ONNX lacks": (lambda x: torch.linalg.lu_factor(x)[0], "replace aten::"),
}


@pytest.mark.parametrize("what", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_the_hint_is_about_what_is_wrong(what: str, tmp_path: Path) -> None:
    forward, said = MODULES[what]
    model = load.from_module(Of(forward), torch.randn(4, 4))
    with pytest.raises(ExportError) as error:
        export.export(model, tmp_path / "m.onnx")
    assert said in error.value.hint
    others = {hint for _, hint in MODULES.values()} - {said}
    assert not any(other in error.value.hint for other in others)


@pytest.mark.filterwarnings("ignore")
def test_what_torch_ao_has_packed_is_said_with_what_to_do(tmp_path: Path) -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
    packed = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ExportError) as error:
        export.export(load.from_module(packed, torch.randn(2, 4)), tmp_path / "m.onnx")
    assert "torch.ao" in error.value.hint
    assert "--calib" in error.value.hint


class Loop(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch._higher_order_ops.while_loop(
            lambda t: t.sum() > 1e9,
            lambda t: (torch.linalg.lu_factor(t)[0].contiguous(),),
            (x,),
        )[0]


class WithScript(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = torch.jit.script(torch.nn.Linear(4, 4))

    def forward(self, x: Any) -> Any:
        return torch.linalg.lu_factor(self.part(x))[0]


@pytest.mark.parametrize("module", [Loop, WithScript])
@pytest.mark.filterwarnings("ignore")
def test_a_failure_inside_of_a_loop_or_beside_a_script_is_an_account(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be exported"):
        export.export(load.from_module(module(), torch.randn(4, 4)), tmp_path / "m.onnx")
