"""Recurrent layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from torture.case import F, I, case


class Whole(nn.Module):
    """A recurrent layer's outputs and states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Head(nn.Module):
    """The last output through a layer."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0][:, -1])


case("recurrent/lstm", lambda: Head(nn.LSTM(6, 8, batch_first=True), 8), F(1, 9, 6))
case(
    "recurrent/lstm-both-ways",
    lambda: Head(nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), 16),
    F(1, 9, 6),
)
case("recurrent/lstm-states", lambda: Whole(nn.LSTM(6, 8, 2)), F(5, 2, 6))
case("recurrent/lstm-projection", lambda: Whole(nn.LSTM(6, 8, proj_size=3, batch_first=True)), F(2, 5, 6))
case("recurrent/lstm-no-bias", lambda: Whole(nn.LSTM(6, 8, bias=False)), F(5, 1, 6))
case("recurrent/lstm-without-batch", lambda: Whole(nn.LSTM(6, 8)), F(5, 6))
case("recurrent/gru", lambda: Head(nn.GRU(6, 8, batch_first=True), 8), F(1, 9, 6))
case(
    "recurrent/gru-both-ways",
    lambda: Whole(nn.GRU(6, 8, 2, bidirectional=True, batch_first=True)),
    F(2, 5, 6),
)
case("recurrent/rnn-relu", lambda: Head(nn.RNN(6, 8, nonlinearity="relu", batch_first=True), 8), F(1, 9, 6))
case("recurrent/rnn-tanh", lambda: Whole(nn.RNN(6, 8, 2, bidirectional=True)), F(5, 1, 6))


class Cells(nn.Module):
    """Cells in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(5, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = g = torch.zeros(x.shape[0], 6)
        r = torch.zeros(x.shape[0], 4)
        for step in x.unbind(1):
            h, c = self.lstm(step, (h, c))
            g = self.gru(h, g)
            r = self.rnn(g, r)
        return r


class Given(nn.Module):
    """States come in and go out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 6)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.layer(x, state)


class Packed(nn.Module):
    """Sequences of other lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, torch.tensor([7, 4]), batch_first=True)
        padded, _ = rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        return self.last(padded)


class Lengths(nn.Module):
    """The lengths are an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(5, 6, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.layer(packed)[1][0]


case("recurrent/cells", Cells, F(1, 5, 5))
case("recurrent/states-given", Given, (F(3, 1, 5), (F(1, 1, 6), F(1, 1, 6))))
case("recurrent/packed", Packed, F(2, 7, 5))
case("recurrent/packed-lengths", Lengths, (F(2, 7, 5), I(8, 2, low=1)), reason=("pack_padded", "packed"))
case(
    "recurrent/dynamic-length",
    lambda: Head(nn.GRU(6, 8, batch_first=True), 8),
    F(1, 9, 6),
    dynamic={"x": {1: "time"}},
    other=F(1, 14, 6),
)
