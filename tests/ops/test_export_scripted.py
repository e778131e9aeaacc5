"""TorchScript: modules that were scripted or traced, and parts of others that were; their branches and loops stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from edgekit import load  # noqa: E402
from edgekit.errors import ExportError  # noqa: E402
from edgekit.graph import export, io  # noqa: E402


class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if bool(x.sum() > 0):
            return y * 2
        return y - 1


class Loops(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x[0])
        for i in range(x.size(0)):
            out = out * 0.5 + x[i]
        return out


class Around(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = torch.jit.script(Branches())

    def forward(self, x: Any) -> Any:
        return self.part(x) + 1


class Choosing(Around):
    """A branch outside of the script: a trace would keep one."""

    def forward(self, x: Any) -> Any:
        return self.part(x) if x.sum() > 0 else x


MODULES = {
    "branches": lambda: torch.jit.script(Branches()),
    "a loop": lambda: torch.jit.script(Loops()),
    "a trace": lambda: torch.jit.trace(torch.nn.Linear(4, 3), torch.ones(2, 4)),
    "a part": Around,
}


@pytest.mark.parametrize("what", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_scripts_are_taken(what: str, tmp_path: Path) -> None:
    module = MODULES[what]().eval()
    exported = export.export(load.from_module(module, torch.ones(2, 4)), tmp_path / "m.onnx")
    for sign in (1.0, -1.0):
        x = torch.full((2, 4), sign) + torch.arange(4.0) * 0.1
        got = io.run(io.session(exported.path), {exported.input_names[0]: x.numpy()})
        np.testing.assert_allclose(got["output"], module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_branch_beside_a_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        export.export(load.from_module(Choosing(), torch.ones(2, 4)), tmp_path / "m.onnx")
