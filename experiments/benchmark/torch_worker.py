"""The same training steps as a plain PyTorch loop; needs nothing but torch and runs in a process of its own.

Written as PyTorch's own tutorials do it, in its favour where there is a choice: images as float32 tensors in memory,
a random permutation an epoch, batches by indexing, default settings of the optimizers, no compilation.

Reads a JSON object a line, writes one a line:
    {"make": name, "model": "mlp" | "cnn", "hidden": [400, 400], "batch_size": 128, "optimizer": "adam"}  ->  {}
    {"run": name, "steps": 100}  ->  {"seconds": 0.31}
"""

import itertools
import json
import sys
import time

import torch

EXAMPLES, NUM_CLASSES, SIDE = 20000, 10, 28


def network(model, hidden):
    if model == "mlp":
        widths = [SIDE * SIDE, *hidden]
        layers = [torch.nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], NUM_CLASSES))
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(64 * 7 * 7, 128), torch.nn.ReLU(), torch.nn.Linear(128, NUM_CLASSES),
    )  # fmt: skip


class Training:
    """A network, its optimizer and its place in the epoch."""

    def __init__(self, asked, x, y):
        self.x, self.y, self.batch_size = x, y, asked["batch_size"]
        self.network = network(asked["model"], asked.get("hidden", ())).to(x.device)
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[asked["optimizer"]]
        self.optimizer = kind(self.network.parameters(), lr={"sgd": 0.01, "adam": 1e-4}[asked["optimizer"]])
        self.order, self.at = torch.arange(len(x)), len(x)

    def steps(self, count):
        for _ in range(count):
            if self.at + self.batch_size > len(self.x):
                self.order, self.at = torch.randperm(len(self.x), device=self.x.device), 0
            rows = self.order[self.at : self.at + self.batch_size]
            self.at += self.batch_size
            self.optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(self.network(self.x[rows]), self.y[rows]).backward()
            self.optimizer.step()


def main(device, threads):
    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    x = torch.rand(EXAMPLES, 1, SIDE, SIDE).to(device)
    y = torch.randint(0, NUM_CLASSES, (EXAMPLES,)).to(device)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    made = {}
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "make" in asked:
            made[asked["make"]] = Training(asked, x, y)
            print("{}", flush=True)
            continue
        start = time.perf_counter()
        made[asked["run"]].steps(asked["steps"])
        wait()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
