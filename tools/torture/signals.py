"""Spectra and complex numbers."""

import torch
from torch import Tensor, nn

from torture.case import F, alone, case, rows

SPECTRA = {
    "fft": lambda x: torch.fft.fft(x).real,
    "fft-complex": lambda x: torch.fft.ifft(torch.fft.fft(torch.complex(x, x.flip(-1))) * 2).imag,
    "fft2": lambda x: torch.fft.fft2(x).abs(),
    "fftn-shift": lambda x: torch.fft.fftshift(torch.fft.fftn(x, dim=(1, 2))).abs(),
    "hfft": lambda x: torch.fft.hfft(torch.complex(x, x.sin())),
    "ihfft": lambda x: torch.fft.ihfft(x).imag,
    "irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) * 0.5, n=8),
    "irfft-odd": lambda x: torch.fft.irfft(torch.fft.rfft(x), n=7),
    "rfft-abs": lambda x: torch.fft.rfft(x).abs(),
    "rfft-angle": lambda x: torch.fft.rfft(x)[..., 1:3].angle().cos(),
    "rfft-ortho": lambda x: torch.view_as_real(torch.fft.rfft(x, n=10, norm="ortho")),
    "rfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.linspace(0.1, 1, 5)),
    "rfft-frequencies": lambda x: x[..., :5] * torch.fft.rfftfreq(8),
}
for _name, _what in SPECTRA.items():
    rows(f"spectrum/{_name}", _what)

COMPLEX = {
    "product": lambda x: (torch.complex(x[:, :3], x[:, 3:]) * (0.5 + 2j)).imag,
    "quotient": lambda x: (torch.complex(x[:, :3], x[:, 3:]) / torch.complex(x[:, 3:] + 2, x[:, :3])).real,
    "exponential": lambda x: torch.exp(1j * x).real,
    "conjugate": lambda x: (
        (torch.complex(x[:, :3], x[:, 3:]).conj() * torch.complex(x[:, 3:], x[:, :3])).real
    ),
    "polar": lambda x: torch.view_as_real(torch.polar(x.abs(), x)),
    "matmul": lambda x: torch.view_as_real(
        torch.complex(x[:, :3], x[:, 3:]) @ torch.complex(x[:, :3], x[:, 3:]).mT
    ),
    "rotary": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(1, 6, 4, 2))
        * torch.polar(torch.ones(6, 4), torch.arange(24.0).reshape(6, 4))
    ),
    "sum-mean": lambda x: torch.view_as_real(
        torch.complex(x[:, :3], x[:, 3:]).sum(-1) + torch.complex(x[:, :3], x[:, 3:]).mean(-1)
    ),
    "activation": lambda x: torch.complex(x[:, :3].relu(), x[:, 3:].relu()).abs(),
    "modulus-relu": lambda x: torch.view_as_real(
        torch.polar((torch.complex(x[:, :3], x[:, 3:]).abs() - 0.3).relu(), x[:, :3])
    ),
}
for _name, _what in COMPLEX.items():
    rows(f"complex/{_name}", _what)
alone("complex/output", lambda x: torch.fft.rfft(x), F(2, 8), reason=("complex",))

WINDOW = torch.hann_window(16)


class Mel(nn.Module):
    """A mel-like front end and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("mel", torch.rand(33, 12, generator=torch.Generator().manual_seed(3)))
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 64, 32, window=self.window, return_complex=True).abs().square()
        return self.last(torch.log(spectrum.mT @ self.mel + 1e-3)).mean(1)


case("signal/mel", Mel, F(1, 512))
alone("signal/stft", lambda x: torch.stft(x, 16, 8, window=WINDOW, return_complex=True).abs(), F(1, 80))
alone(
    "signal/stft-reals",
    lambda x: torch.view_as_real(torch.stft(x, 16, 4, normalized=True, return_complex=True)),
    F(2, 64),
)
alone(
    "signal/istft",
    lambda x: torch.istft(
        torch.stft(x, 16, 4, window=WINDOW, return_complex=True) * 0.5, 16, 4, window=WINDOW
    ),
    F(1, 64),
)
alone(
    "signal/windows",
    lambda x: x * torch.hamming_window(20) + torch.kaiser_window(20) * torch.blackman_window(20),
    F(2, 20),
)
