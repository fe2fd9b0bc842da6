"""A word-level language model: embedding, two LSTM layers of 256, a classifier at every step.

32 steps, vocabulary 1000, 1,306,600 parameters. SGD, learning rate 0.1, momentum 0.9.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LanguageModel(nn.Module):
    def __init__(self, words: int = 1000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 128)
        self.lstm = nn.LSTM(128, 256, num_layers=2)
        self.fc = nn.Linear(256, words)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(tokens))
        return self.fc(hidden)


def lstm2(batch: int, steps: int = 32):
    model = LanguageModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tokens, targets = torch.randint(1000, (steps, batch)), torch.randint(1000, (steps, batch))

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()

    return model, step
