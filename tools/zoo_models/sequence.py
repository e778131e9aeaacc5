"""Networks of our own for the zoo that work on sequences, sound, points, graphs and tables.

Small and with random weights: what counts is which operators they export to.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class RecurrentTagger(nn.Module):
    """Embedding → recurrent layers → one tag a token; tokens ``[N, T]`` → ``[N, T, 9]``."""

    def __init__(self, cell: str, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 32)
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]
        self.rnn = kind(32, 48, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(48 * (2 if bidirectional else 1), 9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(tokens))[0])


class StreamingLstm(nn.Module):
    """One step of a streaming recognizer with its state as input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(40, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 30)

    def forward(self, frames: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, (hidden, cell) = self.rnn(frames, (hidden, cell))
        return self.head(out).log_softmax(-1), hidden, cell


class LstmCells(nn.Module):
    """LSTMCell and GRUCell in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(16, 24), nn.GRUCell(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = c = g = x.new_zeros(x.shape[0], 24)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
        return g


class Seq2Seq(nn.Module):
    """GRU encoder, GRU decoder with additive attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.encoder = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(32, 64, batch_first=True)
        self.query, self.key, self.score = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 1)
        self.head = nn.Linear(128, 100)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, _ = self.encoder(self.embedding(source))
        out, _ = self.decoder(self.embedding(target))
        energy = torch.tanh(self.query(out).unsqueeze(2) + self.key(memory).unsqueeze(1))
        context = self.score(energy).squeeze(-1).softmax(-1) @ memory
        return self.head(torch.cat([out, context], dim=-1))


class Spectrogram(nn.Module):
    """Short-time Fourier transform as a strided convolution, mel bank, log, small classifier."""

    def __init__(self) -> None:
        super().__init__()
        steps = torch.arange(256) / 256 * 2 * torch.pi
        angles = torch.arange(129)[:, None] * steps
        window = torch.hann_window(256)
        self.register_buffer("basis", torch.cat([angles.cos() * window, angles.sin() * window])[:, None])
        self.register_buffer("mel", torch.rand(129, 40))
        self.net = nn.Sequential(nn.Conv1d(40, 32, 3, 2), nn.ReLU(), nn.Conv1d(32, 10, 3))

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = F.conv1d(F.pad(wave[:, None], (128, 128), mode="reflect"), self.basis, stride=128)
        power = spectrum[:, :129].square() + spectrum[:, 129:].square()
        mel = torch.log(power.transpose(1, 2) @ self.mel + 1e-6).transpose(1, 2)
        return self.net(mel).mean(-1)


class TemporalConvNet(nn.Module):
    """Causal dilated 1-D convolutions with weight norm folded, residual."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, channels, 1)
        self.layers = nn.ModuleList(nn.Conv1d(channels, channels, 3, dilation=2**i) for i in range(5))
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i, layer in enumerate(self.layers):
            x = x + F.relu(layer(F.pad(x, (2 * 2**i, 0))))
        return self.head(x[..., -1])


class WaveNet(nn.Module):
    """Gated dilated 1-D convolutions with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 32, 1)
        self.gates = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=2**i, padding=2**i) for i in range(6))
        self.mix = nn.ModuleList(nn.Conv1d(32, 64, 1) for _ in range(6))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(32, 64, 1), nn.ReLU(), nn.Conv1d(64, 256, 1))

    def forward(self, wave: Tensor) -> Tensor:
        x, skips = self.first(wave), 0.0
        for gate, mix in zip(self.gates, self.mix, strict=True):
            value, switch = gate(x)[..., : x.shape[-1]].chunk(2, dim=1)
            residual, skip = mix(torch.tanh(value) * torch.sigmoid(switch)).chunk(2, dim=1)
            x, skips = x + residual, skips + skip
        return self.last(skips)


class ConvTasNet(nn.Module):
    """Learned 1-D encoder, separator with global layer norm and PReLU, transposed decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv1d(1, 64, 16, 8), nn.ConvTranspose1d(64, 1, 16, 8)
        block = [nn.GroupNorm(1, 64), nn.PReLU(), nn.Conv1d(64, 64, 3, padding=1, groups=64)]
        self.separator = nn.Sequential(*block, nn.GroupNorm(1, 64), nn.PReLU(64), nn.Conv1d(64, 128, 1))

    def forward(self, mix: Tensor) -> Tensor:
        code = F.relu(self.encoder(mix))
        masks = torch.sigmoid(self.separator(code)).unflatten(1, (2, 64))
        return self.decoder((masks * code.unsqueeze(1)).flatten(0, 1))


class PointNet(nn.Module):
    """Shared 1 × 1 convolutions over points with a learned input transform, max over points."""

    def __init__(self) -> None:
        super().__init__()

        def shared(*sizes: int) -> nn.Sequential:
            pairs = itertools.pairwise(sizes)
            return nn.Sequential(
                *(nn.Sequential(nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU()) for i, o in pairs)
            )

        self.transform, self.matrix = shared(3, 32, 64), nn.Linear(64, 9)
        self.features, self.head = shared(3, 32, 128), nn.Linear(128, 10)

    def forward(self, points: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(points).amax(-1)).view(-1, 3, 3) + torch.eye(3)
        moved = (points.transpose(1, 2) @ matrix).transpose(1, 2)
        return self.head(self.features(moved).amax(-1))


class GraphConvolution(nn.Module):
    """Messages along edges, summed at their targets (index_add), two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 7)])

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            sent = layer(nodes)
            nodes = sent.index_add(0, edges[1], sent[edges[0]])
            nodes = F.relu(nodes) if i == 0 else nodes
        return nodes


class Dlrm(nn.Module):
    """Dense and sparse features, pairwise interactions, click probability."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50, 16) for _ in range(4))
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(16 + 10, 32), nn.ReLU(), nn.Linear(32, 1))
        pairs = torch.tril_indices(5, 5, -1)
        self.register_buffer("row", pairs[0])
        self.register_buffer("column", pairs[1])

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = torch.stack([x] + [table(sparse[:, i]) for i, table in enumerate(self.tables)], dim=1)
        pairs = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.row, self.column]
        return self.top(torch.cat([x, pairs], dim=1)).sigmoid()


class TwoTower(nn.Module):
    """Users and items by embedding bags, cosine, the best three items of each user."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.EmbeddingBag(100, 24, mode="mean")
        self.item = nn.Embedding(40, 24)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        user = F.normalize(self.user(history), dim=-1)
        scores = user @ F.normalize(self.item.weight, dim=-1).T
        return scores.topk(3, dim=-1)


class DeepFm(nn.Module):
    """Factorization machine plus a perceptron over ten categorical fields."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(300, 1), nn.Embedding(300, 8)
        self.deep = nn.Sequential(
            nn.Linear(80, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.ELU(), nn.Linear(32, 1)
        )

    def forward(self, fields: Tensor) -> Tensor:
        vectors = self.second(fields)
        cross = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.first(fields).sum(1) + cross + self.deep(vectors.flatten(1)))


class Transformer(nn.Module):
    """nn.Transformer, encoder and decoder, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.net = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(32, 100)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length = target.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.head(
            self.net(self.embedding(source), self.embedding(target), tgt_mask=mask, tgt_is_causal=False)
        )


class MixtureOfExperts(nn.Module):
    """Top-2 gating over four dense experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.gate(x).topk(2, dim=-1)
        gates = torch.zeros_like(self.gate(x)).scatter(-1, index, weights.softmax(-1))
        return (torch.stack([e(x) for e in self.experts], dim=-1) * gates.unsqueeze(-2)).sum(-1)


class Autoencoder(nn.Module):
    """Fully connected anomaly detector that returns its reconstruction error."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (640, 128, 8, 128, 640)
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(sizes):
            layers += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-2])

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) - x).square().mean(-1)
